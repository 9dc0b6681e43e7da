// What every schedule of the backward pass does alike: tasks, and work on single rows.
#pragma once

#include <vector>

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// A task that makes all gradients of one sequence and KV head, with five products of each pair of a query
// block and a key tile.
struct WholePass {
  int sequence, kv_head;
  double cost;  // pairs of rows and keys
};
std::vector<WholePass> whole_passes(const TiledPlan& plan);  // the longest first
// Whether they are done sooner than tasks of a first pass over keys and a second over queries, which are as
// many as the threads want but make seven products.
bool end_before_two_passes(const std::vector<WholePass>& passes, int threads);

// grad_out . out of every row: [total_q, query_heads].
std::vector<float> row_deltas(const TiledPlan& plan, const BackwardTensors& tensors);
// grad_sink_h = - sum_i exp(sink_h - LSE_i) delta_i over the query rows of the batch, ascending.
void sum_grad_sinks(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas);
// One rounding. There is one zero: its sign would tell which hidden pairs were multiplied by zero.
void store_gradient(float* row, const TensorView& tensor, std::int64_t index, std::int64_t head);

}  // namespace chorale::tiled
