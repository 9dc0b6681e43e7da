// The forward pass. For each query block:
//
//     for each chunk of keys, in ascending order
//         for each tile of the chunk, in ascending order
//             cover -> keys and values -> scores -> programs -> online softmax
//         merge the chunk's state into the total
//     finish
//
// When there are too few blocks for the threads, the chunks of a block are computed side by side and merged
// in the same order: the same bits.
#include "implementations/cpu/forward.h"

#include <algorithm>

#include "base/threads.h"
#include "implementations/cpu/amx_few.h"
#include "implementations/cpu/amx_many.h"
#include "implementations/cpu/dot_engine.h"
#include "implementations/cpu/fp32_engine.h"
#include "implementations/cpu/fp32_few.h"
#include "implementations/cpu/packed_tiles.h"
#include "implementations/cpu/score_tile.h"
#include "implementations/cpu/softmax_state.h"

namespace chorale::tiled {
namespace {

template <class Engine>
class Forward {
 public:
  Forward(const TiledPlan& plan, const ForwardTensors& tensors)
      : plan_(plan), tensors_(tensors), tiles_(plan, tensors), workers_(plan.threads()) {
    for (const QueryBlock& block : plan.blocks())
      if (Engine::takes_few_rows || plan.sequence_rows(block.sequence) > few_rows) blocks_.push_back(block);
  }

  void run() {
    const auto blocks = std::ssize(blocks_);
    tiles_.pack(plan_.threads(), [&](int w) -> Engine& { return at(w).engine; });
    if (blocks < 2 * plan_.threads() && most_chunks() > 1) return run_chunks();
    parallel_for(blocks, plan_.threads(), [&](std::int64_t i, int w) {
      const QueryBlock& block = blocks_[static_cast<std::size_t>(i)];
      Worker& worker = at(w);
      worker.engine.load_queries(block, tensors_.q);
      attend(block, 0, worker, worker.total);  // merging into an empty state would copy
      for (std::int64_t chunk = 1; chunk < plan_.chunks(block.sequence); ++chunk) {
        attend(block, chunk, worker, worker.chunk);
        worker.total.merge(worker.chunk, worker.tile.log2_factor());
      }
      finish(block, worker);
    });
  }

 private:
  // One thread's memory, independent of any length.
  struct Worker {
    explicit Worker(const TiledPlan& plan)
        : engine(plan),
          tile(plan, Engine::strip_rows, Engine::width),
          chunk(empty_state(plan)),
          total(empty_state(plan)) {}
    Engine engine;
    ScoreTile tile;
    typename PackedTiles<Engine>::Scratch scratch;
    SoftmaxState chunk, total;
  };

  static SoftmaxState empty_state(const TiledPlan& plan) {
    return {plan.most_rows(), plan.problem().value_dim()};
  }

  Worker& at(int index) { return workers_.at(index, plan_); }

  std::int64_t most_chunks() const {
    std::int64_t most = 0;
    for (const QueryBlock& block : blocks_) most = std::max(most, plan_.chunks(block.sequence));
    return most;
  }

  // Every chunk of every block is a task with a state of its own; then every block merges its chunks.
  void run_chunks() {
    struct Task {
      const QueryBlock* block;
      std::int64_t chunk;
    };
    std::vector<Task> tasks;
    std::vector<std::size_t> first_task;
    for (const QueryBlock& block : blocks_) {
      first_task.push_back(tasks.size());
      for (std::int64_t chunk = 0; chunk < plan_.chunks(block.sequence); ++chunk)
        tasks.push_back({&block, chunk});
    }
    std::vector<SoftmaxState> states(tasks.size(), empty_state(plan_));
    parallel_for(static_cast<std::int64_t>(tasks.size()), plan_.threads(), [&](std::int64_t t, int w) {
      const Task& task = tasks[static_cast<std::size_t>(t)];
      Worker& worker = at(w);
      worker.engine.load_queries(*task.block, tensors_.q);
      attend(*task.block, task.chunk, worker, states[static_cast<std::size_t>(t)]);
    });
    parallel_for(std::ssize(blocks_), plan_.threads(), [&](std::int64_t i, int w) {
      const QueryBlock& block = blocks_[static_cast<std::size_t>(i)];
      Worker& worker = at(w);
      worker.total.reset(plan_.rows(block));
      for (std::int64_t chunk = 0; chunk < plan_.chunks(block.sequence); ++chunk)
        worker.total.merge(states[first_task[static_cast<std::size_t>(i)] + static_cast<std::size_t>(chunk)],
                           worker.tile.log2_factor());
      finish(block, worker);
    });
  }

  // One chunk of keys from the empty state.
  void attend(const QueryBlock& block, std::int64_t chunk, Worker& worker, SoftmaxState& state) {
    state.reset(plan_.rows(block));
    [[maybe_unused]] const auto scope = worker.engine.scope();
    const std::int64_t end = std::min(plan_.keys(block.sequence), (chunk + 1) * chunk_keys);
    for (std::int64_t first = chunk * chunk_keys; first < end; first += Engine::width) {
      const std::int64_t count = std::min(Engine::width, end - first);
      if (!sees(block, first, count, worker)) continue;
      tiles_.use(worker.engine, block.sequence, block.kv_head, first / Engine::width, worker.scratch);
      const std::int64_t next = first + Engine::width;
      if (next < end && sees(block, next, std::min(Engine::width, end - next), worker))
        tiles_.ask_for(worker.engine, block.sequence, block.kv_head, next / Engine::width, plan_.rows(block));
      for (std::int64_t row = 0, rows; row < plan_.rows(block); row += rows) {
        rows = place_strip(block, row, first, count, worker.tile);
        if (worker.tile.coverage() == Coverage::empty) continue;
        worker.engine.scores(worker.tile);
        worker.tile.apply_programs();
        state.update(worker.engine, worker.tile, plan_.mutant());
      }
    }
  }

  bool sees(const QueryBlock& block, std::int64_t first, std::int64_t count, const Worker& worker) const {
    return worker.tile.visible_part(block, 0, plan_.rows(block), first, count, Engine::partial_keys)
               .coverage != Coverage::empty;
  }

  // The strip from `row` on and those of the keys that it sees: fewer rows where it does not see all of them,
  // so that less of what is hidden is computed. Returns its rows.
  std::int64_t place_strip(const QueryBlock& block, std::int64_t row, std::int64_t first, std::int64_t count,
                           ScoreTile& tile) const {
    std::int64_t rows = std::min(Engine::strip_rows, plan_.rows(block) - row);
    ScoreTile::Part part = tile.visible_part(block, row, rows, first, count, Engine::partial_keys);
    if (part.coverage == Coverage::partial && rows > Engine::partial_rows) {
      rows = Engine::partial_rows;
      part = tile.visible_part(block, row, rows, first, count, Engine::partial_keys);
    }
    tile.place(block, row, rows, part.first, part.count, part.coverage);
    return rows;
  }

  void finish(const QueryBlock& block, Worker& worker) {
    finish_rows(plan_, tensors_, plan_.rows(block), [&](std::int64_t r) {
      return FinishedRow{plan_.query(block, r), plan_.head(block, r), worker.total.row(r)};
    });
  }

  const TiledPlan& plan_;
  const ForwardTensors& tensors_;
  PackedTiles<Engine> tiles_;
  std::vector<QueryBlock> blocks_;
  PerWorker<Worker> workers_;
};

}  // namespace

void forward(const TiledPlan& plan, const ForwardTensors& tensors) {
  if (plan.blocks().empty()) return;
  switch (plan.arithmetic()) {
    case Arithmetic::fp32_fma:
      Forward<Fp32Engine>(plan, tensors).run();
      return fp32_few(plan, tensors);
    case Arithmetic::vdpbf16:
      return Forward<DotEngine>(plan, tensors).run();
    case Arithmetic::tdpbf16:
      amx_many(plan, tensors);
      return amx_few(plan, tensors);
  }
}

}  // namespace chorale::tiled
