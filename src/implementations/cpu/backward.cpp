// The backward pass (Dao et al. 2022, appendix B). With P = exp(score - LSE), recomputed tile by tile:
//
//     delta_i = sum_c grad_out_ic out_ic
//     dS_ij   = P_ij (grad_out_i . V_j - delta_i) * d score / d (scale q.k)
//     grad_V_j = sum_i P_ij grad_out_i        over query rows ascending, the heads of a group innermost
//     grad_K_j = scale sum_i dS_ij Q_i        the same
//     grad_Q_i = scale sum_j dS_ij K_j        over keys ascending
//     grad_sink_h = - sum_i exp(sink_h - LSE_i) delta_i
//
// Each sum is one chain per element in that order, held in float32 between tiles. So it makes no difference
// whether one pass over a sequence's tiles feeds all three (five products a pair of a query block and a key
// tile), or keys and queries are cut into tasks of their own (seven, but more tasks): what ends first is
// done.
#include "implementations/cpu/backward.h"

#include <algorithm>
#include <deque>
#include <limits>

#include "base/aligned.h"
#include "base/float.h"
#include "base/threads.h"
#include "implementations/cpu/amx_backward.h"
#include "implementations/cpu/dot_gradients.h"
#include "implementations/cpu/fp32_gradients.h"
#include "implementations/cpu/gradient_rows.h"
#include "implementations/cpu/score_tile.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

struct KeyTile {
  std::int64_t first, count;
};

template <class Engine>
class Backward {
 public:
  Backward(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas)
      : plan_(plan),
        problem_(plan.problem()),
        tensors_(tensors),
        deltas_(deltas),
        queries_(plan, tensors),
        workers_(plan.threads()) {}

  void run() {
    const std::vector<WholePass> passes = whole_passes(plan_);
    if (end_before_two_passes(passes, plan_.threads())) {
      parallel_for(std::ssize(passes), plan_.threads(), [&](std::int64_t i, int w) {
        const WholePass& pass = passes[static_cast<std::size_t>(i)];
        whole_pass(pass.sequence, pass.kv_head, at(w));
      });
      return;
    }
    for (int sequence = 0; sequence < plan_.batch().sequences(); ++sequence) two_passes(sequence);
  }

 private:
  // Key tiles that meet a query block while its rows are in the caches.
  static constexpr std::int64_t tiles_at_once = 4;

  // One thread's memory; grad_queries grows with the sequence.
  struct Worker {
    explicit Worker(const Backward& pass)
        : queries(pass.plan_, pass.tensors_),
          tile(pass.plan_, pass.plan_.most_rows_padded(), Engine::width),
          grad_scores(static_cast<std::size_t>(pass.plan_.most_rows_padded() * Engine::width)) {
      for (std::int64_t i = 0; i < tiles_at_once; ++i) engines.emplace_back(pass.plan_, pass.tensors_);
    }
    typename Engine::Queries queries;  // of the pass in hand
    std::deque<Engine> engines;        // one a key tile
    ScoreTile tile;                    // scores, then probabilities
    AlignedVector<float> grad_scores;  // dS, laid out as the tile is
    AlignedVector<float> grad_queries;
  };

  Worker& at(int index) { return workers_.at(index, *this); }

  std::int64_t tiles(int sequence) const { return plan_.blocks_of(plan_.keys(sequence), Engine::width); }
  KeyTile tile(int sequence, std::int64_t index) const {
    return {index * Engine::width, std::min(Engine::width, plan_.keys(sequence) - index * Engine::width)};
  }

  float lse(std::int64_t query, std::int64_t head) const {
    return load_element(tensors_.lse.data, DType::float32,
                        query * tensors_.lse.stride[0] + head * tensors_.lse.stride[1]);
  }
  float delta(std::int64_t query, std::int64_t head) const {
    return deltas_[static_cast<std::size_t>(query * problem_.query_heads + head)];
  }

  // Each key tile meets each query block once.
  void whole_pass(int sequence, int kv_head, Worker& worker) {
    worker.queries.hold(sequence, kv_head, 1);
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i)
      worker.queries.prepare(plan_.block(sequence, kv_head, i));
    clear_grad_queries(plan_.sequence_rows(sequence), worker);
    for (std::int64_t j = 0; j < tiles(sequence); j += tiles_at_once)
      key_tiles(sequence, kv_head, j, worker.queries, worker, worker.grad_queries.data());
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i) {
      const QueryBlock block = plan_.block(sequence, kv_head, i);
      store_grad_queries(block, rows_of(block, worker.grad_queries.data(), worker), worker);
    }
  }

  // The gradients of keys and values, then those of queries.
  void two_passes(int sequence) {
    queries_.hold(sequence, 0, problem_.kv_heads);
    const auto each_head = [&](std::int64_t count, auto task) {
      parallel_for(count * problem_.kv_heads, plan_.threads(), [&](std::int64_t i, int w) {
        task(static_cast<int>(i % problem_.kv_heads), i / problem_.kv_heads, at(w));
      });
    };
    each_head(plan_.block_count(sequence),
              [&](int head, std::int64_t i, Worker&) { queries_.prepare(plan_.block(sequence, head, i)); });
    each_head(plan_.blocks_of(tiles(sequence), tiles_at_once), [&](int head, std::int64_t i, Worker& worker) {
      key_tiles(sequence, head, i * tiles_at_once, queries_, worker, nullptr);
    });
    each_head(plan_.block_count(sequence), [&](int head, std::int64_t i, Worker& worker) {
      query_block(plan_.block(sequence, head, i), queries_, worker);
    });
  }

  // grad_K and grad_V of some key tiles; adds to grad_queries (all rows of the sequence) where that is given.
  void key_tiles(int sequence, int kv_head, std::int64_t first, const typename Engine::Queries& queries,
                 Worker& worker, float* grad_queries) {
    const std::int64_t count = std::min(tiles_at_once, tiles(sequence) - first);
    [[maybe_unused]] const auto scope = worker.engines[0].scope();
    for (std::int64_t j = 0; j < count; ++j) {
      Engine& engine = worker.engines[static_cast<std::size_t>(j)];
      const KeyTile keys = tile(sequence, first + j);
      engine.load_keys(sequence, kv_head, keys.first, keys.count);
      engine.clear_grad_keys();
    }
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i) {
      const QueryBlock block = plan_.block(sequence, kv_head, i);
      for (std::int64_t j = 0; j < count; ++j) {
        Engine& engine = worker.engines[static_cast<std::size_t>(j)];
        if (!grad_scores(block, tile(sequence, first + j), queries, engine, worker)) continue;
        engine.add_grad_keys(worker.tile);
        if (grad_queries != nullptr)
          engine.add_grad_queries(worker.tile, seen_rows(rows_of(block, grad_queries, worker), worker));
      }
    }
    for (std::int64_t j = 0; j < count; ++j)
      store_grad_keys(sequence, kv_head, tile(sequence, first + j),
                      worker.engines[static_cast<std::size_t>(j)]);
  }

  // grad_Q of one query block.
  void query_block(const QueryBlock& block, const typename Engine::Queries& queries, Worker& worker) {
    Engine& engine = worker.engines[0];
    clear_grad_queries(plan_.rows(block), worker);
    [[maybe_unused]] const auto scope = engine.scope();
    for (std::int64_t j = 0; j < tiles(block.sequence); ++j) {
      const KeyTile keys = tile(block.sequence, j);
      if (worker.tile.cover(block, keys.first, keys.count) == Coverage::empty) continue;
      engine.load_keys(block.sequence, block.kv_head, keys.first, keys.count);
      if (grad_scores(block, keys, queries, engine, worker))
        engine.add_grad_queries(worker.tile, seen_rows(worker.grad_queries.data(), worker));
    }
    store_grad_queries(block, worker.grad_queries.data(), worker);
  }

  // Of a block, the rows that see something of a tile, and those between them, in steps of an engine's.
  // Others would add zeros.
  struct SomeRows {
    Coverage coverage;
    std::int64_t first, count;
  };
  SomeRows seeing_rows(const QueryBlock& block, const KeyTile& keys, const ScoreTile& tile) const {
    const std::int64_t rows = plan_.rows(block);
    const auto cover = [&](std::int64_t first, std::int64_t count) {
      return tile.cover(block, first, count, keys.first, keys.count);
    };
    SomeRows some{cover(0, rows), 0, rows};
    constexpr std::int64_t step = Engine::row_step;
    if (some.coverage != Coverage::partial) return some;
    while (some.count > step && cover(some.first, step) == Coverage::empty) {
      some.first += step;
      some.count -= step;
    }
    const auto last = [&] { return (some.count - 1) % step + 1; };  // rows of the last step
    while (some.count > step && cover(some.first + some.count - last(), last()) == Coverage::empty)
      some.count -= last();
    some.coverage = cover(some.first, some.count);
    return some;
  }

  // P into worker.tile and dS into worker.grad_scores for one pair; false if the mask hides all of it.
  bool grad_scores(const QueryBlock& block, const KeyTile& keys, const typename Engine::Queries& queries,
                   Engine& engine, Worker& worker) {
    const SomeRows some = seeing_rows(block, keys, worker.tile);
    if (some.coverage == Coverage::empty) return false;
    engine.load_queries(queries, block, some.first);
    worker.tile.place(block, some.first, some.count, keys.first, keys.count, some.coverage);
    engine.scores(worker.tile);
    worker.tile.apply_programs();
    engine.grad_probabilities(worker.tile, worker.grad_scores.data());
    for (std::int64_t r = 0; r < some.count; ++r) {
      const std::int64_t query = plan_.query(block, some.first + r), head = plan_.head(block, some.first + r);
      float *p = worker.tile.row(r), *gradient = worker.grad_scores.data() + r * Engine::width;
      const float row_lse = lse(query, head);
      if (row_lse == -std::numeric_limits<float>::infinity()) {  // the row sees nothing
        std::fill_n(p, keys.count, 0.0f);
        std::fill_n(gradient, keys.count, 0.0f);
      } else {
        simd::softmax_row_backward(p, gradient, keys.count, worker.tile.log2_factor(), row_lse * log2_e,
                                   delta(query, head));
      }
    }
    worker.tile.apply_derivative(worker.grad_scores.data());
    engine.take(worker.tile, worker.grad_scores.data());
    return true;
  }

  // Engines write whole groups of sixteen rows.
  void clear_grad_queries(std::int64_t rows, Worker& worker) {
    worker.grad_queries.assign(static_cast<std::size_t>((rows + simd::lanes) * worker.engines[0].key_row()),
                               0.0f);
  }
  float* rows_of(const QueryBlock& block, float* grad_queries, const Worker& worker) const {
    return grad_queries + block.first * problem_.group_size() * worker.engines[0].key_row();
  }

  // Of a block's rows, those in the tile.
  static float* seen_rows(float* block_rows, const Worker& worker) {
    return block_rows + worker.tile.first_row() * worker.engines[0].key_row();
  }

  void store_grad_queries(const QueryBlock& block, float* rows, Worker& worker) {
    for (std::int64_t r = 0; r < plan_.rows(block); ++r) {
      float* row = rows + r * worker.engines[0].key_row();
      simd::scale(row, problem_.scale_or_default(), problem_.head_dim);
      store_gradient(row, tensors_.grad_q, plan_.query(block, r), plan_.head(block, r));
    }
  }

  void store_grad_keys(int sequence, int kv_head, const KeyTile& keys, Engine& engine) {
    engine.finish_grad_keys();
    for (std::int64_t j = 0; j < keys.count; ++j) {
      const std::int64_t row = first_key_[static_cast<std::size_t>(sequence)] + keys.first + j;
      float* grad_key = engine.grad_key(j);
      simd::scale(grad_key, problem_.scale_or_default(), problem_.head_dim);
      store_gradient(grad_key, tensors_.grad_k, row, kv_head);
      store_gradient(engine.grad_value(j), tensors_.grad_v, row, kv_head);
    }
  }

  // Where each sequence's rows start in grad_k and grad_v, which are packed in either layout.
  static std::vector<std::int64_t> first_keys(const Batch& batch) {
    std::vector<std::int64_t> first(static_cast<std::size_t>(batch.sequences()));
    for (int b = 1; b < batch.sequences(); ++b) first[b] = first[b - 1] + batch.kv_len(b - 1);
    return first;
  }

  const TiledPlan& plan_;
  const Problem& problem_;
  const BackwardTensors& tensors_;
  const std::vector<float>& deltas_;
  typename Engine::Queries queries_;
  std::vector<std::int64_t> first_key_ = first_keys(plan_.batch());
  PerWorker<Worker> workers_;
};

}  // namespace

void backward(const TiledPlan& plan, const BackwardTensors& tensors) {
  const std::vector<float> deltas = row_deltas(plan, tensors);
  if (plan.problem().sinks) sum_grad_sinks(plan, tensors, deltas);
  switch (plan.arithmetic()) {
    case Arithmetic::fp32_fma:
      return Backward<Fp32Gradients>(plan, tensors, deltas).run();
    case Arithmetic::vdpbf16:
      return Backward<DotGradients>(plan, tensors, deltas).run();
    case Arithmetic::tdpbf16:
      return amx_backward(plan, tensors, deltas);
  }
}

}  // namespace chorale::tiled
