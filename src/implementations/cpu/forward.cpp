// The forward pass. For each query block:
//
//     for each chunk of keys, in ascending order
//         for each tile of the chunk, in ascending order
//             cover -> load keys -> scores -> load values -> online softmax
//         merge the chunk's state into the total
//     finish
//
// When there are too few blocks for the threads, the chunks of a block are computed side by side and merged in the same
// order: the same bits.
#include "implementations/cpu/forward.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>

#include "base/float.h"
#include "base/threads.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/score_tile.h"
#include "implementations/cpu/softmax_state.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

SoftmaxState empty_state(const TiledPlan& plan) { return {plan.most_rows(), plan.problem().value_dim()}; }

// One thread's memory, independent of any length.
struct Worker {
  explicit Worker(const TiledPlan& plan)
      : tile(plan),
        queries(static_cast<std::size_t>(plan.most_rows() * plan.problem().head_dim)),
        key_rows(static_cast<std::size_t>(tile_keys * plan.problem().head_dim)),
        keys(key_rows.size()),
        values(static_cast<std::size_t>(tile_keys * simd::round_up(plan.problem().value_dim()))),
        chunk(empty_state(plan)),
        total(empty_state(plan)) {}

  ScoreTile tile;
  std::vector<float> queries, key_rows, keys, values;
  SoftmaxState chunk, total;
};

class Forward {
 public:
  Forward(const TiledPlan& plan, const ForwardTensors& tensors) : plan_(plan), problem_(plan.problem()), tensors_(tensors) {}

  void run() {
    const auto blocks = static_cast<std::int64_t>(plan_.blocks().size());
    if (blocks == 0) return;
    const int threads = plan_.threads();
    workers_.resize(static_cast<std::size_t>(threads));
    if (blocks < 2 * threads && most_chunks() > 1) run_chunks(threads);
    else
      parallel_for(blocks, threads, [&](std::int64_t i, int w) {
        const QueryBlock& block = plan_.blocks()[i];
        Worker& worker = at(w);
        load_block(plan_, block, tensors_.q, worker.queries.data(), problem_.head_dim);
        worker.total.reset(plan_.rows(block));
        for (std::int64_t chunk = 0; chunk < plan_.chunks(block.sequence); ++chunk) {
          attend(block, chunk, worker, worker.chunk);
          worker.total.merge(worker.chunk, worker.tile.log2_factor());
        }
        finish(block, worker, worker.total);
      });
  }

 private:
  Worker& at(int index) {
    auto& worker = workers_[static_cast<std::size_t>(index)];
    if (!worker) worker.emplace(plan_);
    return *worker;
  }

  std::int64_t most_chunks() const {
    std::int64_t most = 0;
    for (const QueryBlock& block : plan_.blocks()) most = std::max(most, plan_.chunks(block.sequence));
    return most;
  }

  // Every chunk of every block is a task with a state of its own; then every block merges its chunks.
  void run_chunks(int threads) {
    struct Task {
      std::size_t block;
      std::int64_t chunk;
    };
    std::vector<Task> tasks;
    std::vector<std::size_t> first_task;
    for (std::size_t i = 0; i < plan_.blocks().size(); ++i) {
      first_task.push_back(tasks.size());
      for (std::int64_t chunk = 0; chunk < plan_.chunks(plan_.blocks()[i].sequence); ++chunk) tasks.push_back({i, chunk});
    }
    std::vector<SoftmaxState> states(tasks.size(), empty_state(plan_));
    parallel_for(static_cast<std::int64_t>(tasks.size()), threads, [&](std::int64_t t, int w) {
      const QueryBlock& block = plan_.blocks()[tasks[t].block];
      Worker& worker = at(w);
      load_block(plan_, block, tensors_.q, worker.queries.data(), problem_.head_dim);
      attend(block, tasks[t].chunk, worker, states[t]);
    });
    parallel_for(static_cast<std::int64_t>(plan_.blocks().size()), threads, [&](std::int64_t i, int w) {
      const QueryBlock& block = plan_.blocks()[i];
      Worker& worker = at(w);
      worker.total.reset(plan_.rows(block));
      for (std::int64_t chunk = 0; chunk < plan_.chunks(block.sequence); ++chunk)
        worker.total.merge(states[first_task[i] + chunk], worker.tile.log2_factor());
      finish(block, worker, worker.total);
    });
  }

  // One chunk of keys from the empty state.
  void attend(const QueryBlock& block, std::int64_t chunk, Worker& worker, SoftmaxState& state) {
    const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, block.sequence, block.kv_head, false);
    const KeyRows values(plan_, tensors_.v, tensors_.v_scale, block.sequence, block.kv_head, true);
    state.reset(plan_.rows(block));
    const std::int64_t end = std::min(plan_.keys(block.sequence), (chunk + 1) * chunk_keys);
    for (std::int64_t first = chunk * chunk_keys; first < end; first += tile_keys) {
      const std::int64_t count = std::min(tile_keys, end - first);
      const Coverage coverage = worker.tile.cover(block, first, count);
      if (coverage == Coverage::empty) continue;
      keys.load(first, count, worker.key_rows.data(), keys.dim());
      simd::transpose(worker.key_rows.data(), keys.dim(), count, keys.dim(), worker.keys.data(), tile_keys);
      worker.tile.compute(block, worker.queries.data(), problem_.head_dim, worker.keys.data(), first, count, coverage);
      values.load(first, count, worker.values.data(), state.value_row());
      state.update(worker.tile, worker.values.data(), plan_.mutant());
    }
  }

  // One rounding: out and lse of every row of the block.
  void finish(const QueryBlock& block, Worker& worker, SoftmaxState& state) {
    for (std::int64_t r = 0; r < plan_.rows(block); ++r) {
      const std::int64_t query = plan_.query(block, r), head = plan_.head(block, r);
      const float sink = problem_.sinks ? load_element(tensors_.sinks.data, DType::float32, head * tensors_.sinks.stride[0])
                                        : -std::numeric_limits<float>::infinity();
      const float lse = state.finish(r, worker.tile.natural_factor(), sink);
      const TensorView& out = tensors_.out;
      auto* to = static_cast<std::byte*>(out.data) +
                 (query * out.stride[0] + head * out.stride[1]) * static_cast<std::int64_t>(size_of(out.dtype));
      simd::from_float(state.out(r), out.dtype, to, problem_.value_dim());
      if (!tensors_.lse.empty())
        store_element(tensors_.lse.data, DType::float32, query * tensors_.lse.stride[0] + head * tensors_.lse.stride[1], lse);
    }
  }

  const TiledPlan& plan_;
  const Problem& problem_;
  const ForwardTensors& tensors_;
  std::vector<std::optional<Worker>> workers_;
};

}  // namespace

void forward(const TiledPlan& plan, const ForwardTensors& tensors) { Forward(plan, tensors).run(); }

}  // namespace chorale::tiled
