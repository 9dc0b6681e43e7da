// Float32 products where a sequence has few rows: keys and values are multiplied where they lie, each read
// once. For each sequence, or each of its chunks where there are few, on any thread:
//
//     for each chunk of 1024 keys
//       for each tile of 64 keys that the mask does not hide
//         for each 16 keys, for each KV head      scores
//         for each KV head                        programs, softmax
//         for each 16 values, for each KV head    sums
//       merge the chunk into the total
//
// A page holds the rows of all heads side by side, so memory is read as it lies, and the processor's own
// prefetcher runs ahead: asking for the next rows by instructions made it slower.
//
// The order of arithmetic is that of forward.cpp.
#include "implementations/cpu/fp32_few.h"

#include <algorithm>
#include <array>

#include "base/aligned.h"
#include "base/threads.h"
#include "implementations/cpu/few_tasks.h"
#include "implementations/cpu/finite.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/query_rows.h"
#include "implementations/cpu/score_tile.h"
#include "implementations/cpu/softmax_state.h"
#include "simd/product.h"

namespace chorale::tiled {
namespace {

// Products of one KV head's rows with keys and values, some rows of a tile at a time.
class RowsEngine {
 public:
  static constexpr std::int64_t width = tile_keys, strip_rows = few_rows;

  explicit RowsEngine(const TiledPlan& plan)
      : dim_(plan.problem().head_dim),
        value_dim_(plan.problem().value_dim()),
        scratch_(static_cast<std::size_t>(width * std::max(dim_, simd::round_up(value_dim_)))) {}

  // `count` rows from the first-th of the tile on.
  void scores(const float* queries, const KeyRows& keys, ScoreTile& tile, std::int64_t first,
              std::int64_t count) {
    const DType dtype = locate(keys, tile.first() + first, count);
    std::fill(rows_.begin() + count, rows_.end(), rows_[0]);  // their scores are not looked at
    simd::product_rows_transposed({.rows = tile.rows(),
                                   .a = queries,
                                   .a_row = dim_,
                                   .b = rows_.data(),
                                   .b_dtype = dtype,
                                   .b_rows = count,
                                   .columns = dim_,
                                   .out = tile.data() + first,
                                   .out_row = width});
  }
  void softmax(ScoreTile& tile, const float* before, simd::RowSoftmax* to) {
    simd::softmax_rows(tile.data(), width, tile.rows(), tile.count(), before, tile.log2_factor(), to);
  }
  void accumulate(const KeyRows& values, ScoreTile& tile, std::int64_t first, std::int64_t count, float* out,
                  std::int64_t out_row) {
    const DType dtype = locate(values, tile.first() + first, count);
    simd::product_rows({.rows = tile.rows(),
                        .a = tile.data() + first,
                        .a_row = width,
                        .b = rows_.data(),
                        .b_dtype = dtype,
                        .b_rows = count,
                        .columns = value_dim_,
                        .out = out,
                        .out_row = out_row});
  }
  // Whether hidden pairs of the tile must be left out one by one; if so it has been done.
  bool accumulate_visible(const KeyRows& values, ScoreTile& tile, float* out, std::int64_t out_row) {
    if (tile.visible() == nullptr) return false;
    const std::int64_t row = simd::round_up(value_dim_);
    AlignedVector<float> copy(static_cast<std::size_t>(tile.count() * row));
    values.load(tile.first(), tile.count(), copy.data(), row);
    if (all_finite(copy.data(), tile.count() * row)) return false;
    simd::multiply_visible({tile.rows(), value_dim_, tile.count()}, {tile.data(), width, 1}, copy.data(), row,
                           tile.visible(), out, out_row, true);
    return true;
  }

 private:
  DType locate(const KeyRows& of, std::int64_t first, std::int64_t count) {
    return of.typed_rows(first, count, rows_.data(), scratch_.data());
  }

  std::int64_t dim_, value_dim_;
  std::array<const std::byte*, width> rows_;
  AlignedVector<float> scratch_;  // rows that do not lie as products read them
};

class Fp32Few {
 public:
  Fp32Few(const TiledPlan& plan, const ForwardTensors& tensors)
      : plan_(plan), tensors_(tensors), workers_(plan.threads()) {}

  void run() {
    const FewTasks work = few_tasks(plan_);
    if (!work.whole) return run_chunks(work);
    parallel_for(std::ssize(work.tasks), plan_.threads(), [&](std::int64_t i, int w) {
      const FewTask& task = work.tasks[static_cast<std::size_t>(i)];
      Worker& worker = at(w);
      grow(task.heads, worker.totals);
      attend(task, worker.totals.data(), worker);
      for (int h = 0; h < task.heads; ++h) finish(block(task, h), worker.totals[static_cast<std::size_t>(h)]);
    });
  }

 private:
  // One thread's memory.
  struct Worker {
    explicit Worker(const TiledPlan& plan) : engine(plan) {}
    RowsEngine engine;
    AlignedVector<float> queries;  // of all heads
    std::vector<ScoreTile> tiles;  // of each head
    std::vector<SoftmaxState> chunks, totals;
  };
  struct Tile {
    std::int64_t first, count;
    Coverage coverage;  // for all heads, if the mask treats them alike
    std::int64_t chunk() const { return first / chunk_keys; }
  };
  struct Head {
    QueryBlock block;
    KeyRows keys, values;
    const float* queries;
  };

  Worker& at(int index) { return workers_.at(index, plan_); }
  SoftmaxState empty_state() const { return {few_rows, plan_.problem().value_dim()}; }
  void grow(int heads, std::vector<SoftmaxState>& states) const {
    while (std::ssize(states) < heads) states.push_back(empty_state());
  }
  QueryBlock block(const FewTask& task, int head) const {
    return plan_.block(task.sequence, task.first_head + head, 0);
  }
  bool by_head() const { return plan_.problem().mask.program().uses(Program::Op::h); }

  // Every chunk is a task; then a sequence's chunks are merged in order.
  void run_chunks(const FewTasks& work) {
    std::vector<SoftmaxState> states(work.states, empty_state());
    parallel_for(std::ssize(work.tasks), plan_.threads(), [&](std::int64_t i, int w) {
      const FewTask& task = work.tasks[static_cast<std::size_t>(i)];
      attend(task, states.data() + task.state, at(w));
    });
    const int heads = plan_.problem().kv_heads;
    parallel_for(std::ssize(work.sequences) * heads, plan_.threads(), [&](std::int64_t i, int w) {
      const auto index = static_cast<std::size_t>(i / heads);
      const QueryBlock of = plan_.block(work.sequences[index], static_cast<int>(i % heads), 0);
      grow(1, at(w).totals);
      SoftmaxState& total = at(w).totals[0];
      total.reset(plan_.rows(of));
      for (std::int64_t chunk = 0; chunk < plan_.chunks(of.sequence); ++chunk)
        total.merge(states[work.first_state[index] + static_cast<std::size_t>(chunk * heads + of.kv_head)],
                    plan_.log2_factor());
      finish(of, total);
    });
  }

  // totals[h] becomes the state over the task's chunks.
  void attend(const FewTask& task, SoftmaxState* totals, Worker& worker) {
    const std::int64_t rows = plan_.sequence_rows(task.sequence);
    const std::vector<Head> heads = load_heads(task, worker);
    grow(task.heads, worker.chunks);
    while (std::ssize(worker.tiles) < task.heads)
      worker.tiles.emplace_back(plan_, few_rows, RowsEngine::width);
    const std::vector<Tile> tiles = visible_tiles(task, worker.tiles[0]);
    for (int h = 0; h < task.heads; ++h) totals[h].reset(rows);
    for (std::size_t n = 0; n < tiles.size(); ++n) {
      const Tile& tile = tiles[n];
      const Tile* next = n + 1 < tiles.size() ? &tiles[n + 1] : nullptr;
      if (n == 0 || tile.chunk() != tiles[n - 1].chunk())
        for (int h = 0; h < task.heads; ++h) worker.chunks[static_cast<std::size_t>(h)].reset(rows);
      score(heads, tile, worker);
      accumulate(heads, tile, worker);
      if (next == nullptr || next->chunk() != tile.chunk())
        for (int h = 0; h < task.heads; ++h)
          totals[h].merge(worker.chunks[static_cast<std::size_t>(h)], plan_.log2_factor());
    }
  }

  std::vector<Head> load_heads(const FewTask& task, Worker& worker) const {
    const std::int64_t elements = plan_.sequence_rows(task.sequence) * plan_.problem().head_dim;
    worker.queries.resize(static_cast<std::size_t>(task.heads * elements));
    std::vector<Head> heads;
    for (int h = 0; h < task.heads; ++h) {
      float* queries = worker.queries.data() + h * elements;
      load_block(plan_, block(task, h), tensors_.q, queries, plan_.problem().head_dim);
      const int head = task.first_head + h;
      heads.push_back({block(task, h),
                       {plan_, tensors_.k, tensors_.k_scale, task.sequence, head, false},
                       {plan_, tensors_.v, tensors_.v_scale, task.sequence, head, true},
                       queries});
    }
    return heads;
  }

  std::vector<Tile> visible_tiles(const FewTask& task, const ScoreTile& tile) const {
    std::vector<Tile> tiles;
    const std::int64_t end =
        std::min(plan_.keys(task.sequence), (task.first_chunk + task.chunks) * chunk_keys);
    for (std::int64_t first = task.first_chunk * chunk_keys; first < end; first += RowsEngine::width) {
      const std::int64_t count = std::min(RowsEngine::width, end - first);
      const Coverage coverage = by_head() ? Coverage::partial : tile.cover(block(task, 0), first, count);
      if (coverage != Coverage::empty) tiles.push_back({first, count, coverage});
    }
    return tiles;
  }

  // Scores of a tile under all heads.
  void score(const std::vector<Head>& heads, const Tile& tile, Worker& worker) {
    for (std::size_t h = 0; h < heads.size(); ++h) {
      const QueryBlock& of = heads[h].block;
      ScoreTile& scores = worker.tiles[h];
      const Coverage coverage = by_head() ? scores.cover(of, tile.first, tile.count) : tile.coverage;
      scores.place(of, 0, plan_.rows(of), tile.first, tile.count, coverage);
    }
    for_rows_of_heads(heads, tile, worker, [&](std::size_t h, std::int64_t first, std::int64_t count) {
      worker.engine.scores(heads[h].queries, heads[h].keys, worker.tiles[h], first, count);
    });
  }

  // Takes the scores and the tile's values into the states of the chunk.
  void accumulate(const std::vector<Head>& heads, const Tile& tile, Worker& worker) {
    std::vector<bool> done(heads.size());
    for (std::size_t h = 0; h < heads.size(); ++h) {
      ScoreTile& scores = worker.tiles[h];
      SoftmaxState& state = worker.chunks[h];
      if (scores.coverage() == Coverage::empty) continue;
      scores.apply_programs();
      state.take_scores(worker.engine, scores, plan_.mutant());
      done[h] = worker.engine.accumulate_visible(heads[h].values, scores, state.out(0), state.value_row());
    }
    for_rows_of_heads(heads, tile, worker, [&](std::size_t h, std::int64_t first, std::int64_t count) {
      SoftmaxState& state = worker.chunks[h];
      if (!done[h])
        worker.engine.accumulate(heads[h].values, worker.tiles[h], first, count, state.out(0),
                                 state.value_row());
    });
  }

  // Some rows of all heads before the next rows. 64 at once were more streams than the prefetcher follows.
  template <class Step>
  void for_rows_of_heads(const std::vector<Head>& heads, const Tile& tile, Worker& worker, Step step) {
    constexpr std::int64_t rows = simd::lanes;
    for (std::int64_t first = 0; first < tile.count; first += rows)
      for (std::size_t h = 0; h < heads.size(); ++h)
        if (worker.tiles[h].coverage() != Coverage::empty) step(h, first, std::min(rows, tile.count - first));
  }

  void finish(const QueryBlock& of, SoftmaxState& state) const {
    finish_rows(plan_, tensors_, plan_.rows(of), [&](std::int64_t r) {
      return FinishedRow{plan_.query(of, r), plan_.head(of, r), state.row(r)};
    });
  }

  const TiledPlan& plan_;
  const ForwardTensors& tensors_;
  PerWorker<Worker> workers_;
};

}  // namespace

void fp32_few(const TiledPlan& plan, const ForwardTensors& tensors) { Fp32Few(plan, tensors).run(); }

}  // namespace chorale::tiled
