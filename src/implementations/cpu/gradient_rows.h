// What every schedule of the backward pass does with single rows.
#pragma once

#include <vector>

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// grad_out . out of every row: [total_q, query_heads].
std::vector<float> row_deltas(const TiledPlan& plan, const BackwardTensors& tensors);
// grad_sink_h = - sum_i exp(sink_h - LSE_i) delta_i over the query rows of the batch, ascending.
void sum_grad_sinks(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas);
// One rounding. There is one zero: its sign would tell which hidden pairs were multiplied by zero.
void store_gradient(float* row, const TensorView& tensor, std::int64_t index, std::int64_t head);

}  // namespace chorale::tiled
