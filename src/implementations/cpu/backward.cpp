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
// whether one pass over a sequence's tiles feeds all three (fewer products), or keys and queries are cut into
// tasks of their own (more tasks): the number of tasks decides.
#include "implementations/cpu/backward.h"

#include <algorithm>
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
    parallel_for(static_cast<std::int64_t>(plan_.blocks().size()), plan_.threads(),
                 [&](std::int64_t i, int) { queries_.prepare(plan_.blocks()[static_cast<std::size_t>(i)]); });
    const std::int64_t sequences = plan_.batch().sequences(), pairs = sequences * problem_.kv_heads;
    if (pairs >= 2 * plan_.threads() || plan_.threads() == 1) {
      parallel_for(pairs, plan_.threads(), [&](std::int64_t i, int w) {
        one_pass(static_cast<int>(i / problem_.kv_heads), static_cast<int>(i % problem_.kv_heads), at(w));
      });
      return;
    }
    for (int sequence = 0; sequence < sequences; ++sequence) {
      parallel_for(tiles(sequence) * problem_.kv_heads, plan_.threads(), [&](std::int64_t i, int w) {
        key_tile(sequence, static_cast<int>(i % problem_.kv_heads), i / problem_.kv_heads, at(w), nullptr);
      });
      parallel_for(
          plan_.block_count(sequence) * problem_.kv_heads, plan_.threads(), [&](std::int64_t i, int w) {
            query_block(plan_.block(sequence, static_cast<int>(i % problem_.kv_heads), i / problem_.kv_heads),
                        at(w));
          });
    }
  }

 private:
  // One thread's memory for one pair of a query block and a key tile; grad_queries grows with the sequence.
  struct Worker {
    explicit Worker(const Backward& pass)
        : engine(pass.plan_, pass.tensors_, pass.queries_),
          tile(pass.plan_, pass.plan_.most_rows_padded(), Engine::width),
          grad_scores(static_cast<std::size_t>(pass.plan_.most_rows_padded() * Engine::width)) {}
    Engine engine;
    ScoreTile tile;                    // scores, then probabilities
    AlignedVector<float> grad_scores;  // dS, laid out as the tile is
    AlignedVector<float> grad_queries;
  };

  Worker& at(int index) { return workers_.at(index, *this); }

  std::int64_t tiles(int sequence) const {
    return (plan_.keys(sequence) + Engine::width - 1) / Engine::width;
  }
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

  // All gradients of one sequence and KV head: each key tile meets each query block once.
  void one_pass(int sequence, int kv_head, Worker& worker) {
    clear_grad_queries(static_cast<std::int64_t>(plan_.batch().q_len(sequence)) * problem_.group_size(),
                       worker);
    for (std::int64_t j = 0; j < tiles(sequence); ++j)
      key_tile(sequence, kv_head, j, worker, worker.grad_queries.data());
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i) {
      const QueryBlock block = plan_.block(sequence, kv_head, i);
      store_grad_queries(block, rows_of(block, worker.grad_queries.data(), worker), worker);
    }
  }

  // grad_K and grad_V of one key tile; adds to grad_queries (all rows of the sequence) where that is given.
  void key_tile(int sequence, int kv_head, std::int64_t index, Worker& worker, float* grad_queries) {
    [[maybe_unused]] const auto scope = worker.engine.scope();
    const KeyTile keys = tile(sequence, index);
    worker.engine.load_keys(sequence, kv_head, keys.first, keys.count);
    worker.engine.clear_grad_keys();
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i) {
      const QueryBlock block = plan_.block(sequence, kv_head, i);
      if (!grad_scores(block, keys, worker)) continue;
      worker.engine.add_grad_keys(worker.tile);
      if (grad_queries != nullptr)
        worker.engine.add_grad_queries(worker.tile, rows_of(block, grad_queries, worker));
    }
    store_grad_keys(sequence, kv_head, keys, worker);
  }

  // grad_Q of one query block.
  void query_block(const QueryBlock& block, Worker& worker) {
    clear_grad_queries(plan_.rows(block), worker);
    [[maybe_unused]] const auto scope = worker.engine.scope();
    for (std::int64_t j = 0; j < tiles(block.sequence); ++j) {
      const KeyTile keys = tile(block.sequence, j);
      if (worker.tile.cover(block, keys.first, keys.count) == Coverage::empty) continue;
      worker.engine.load_keys(block.sequence, block.kv_head, keys.first, keys.count);
      if (grad_scores(block, keys, worker))
        worker.engine.add_grad_queries(worker.tile, worker.grad_queries.data());
    }
    store_grad_queries(block, worker.grad_queries.data(), worker);
  }

  // P into worker.tile and dS into worker.grad_scores for one pair; false if the mask hides all of it.
  bool grad_scores(const QueryBlock& block, const KeyTile& keys, Worker& worker) {
    const Coverage coverage = worker.tile.cover(block, keys.first, keys.count);
    if (coverage == Coverage::empty) return false;
    worker.engine.load_queries(block);
    worker.tile.place(block, 0, plan_.rows(block), keys.first, keys.count, coverage);
    worker.engine.scores(worker.tile);
    worker.tile.apply_programs();
    worker.engine.grad_probabilities(worker.tile, worker.grad_scores.data());
    for (std::int64_t r = 0; r < plan_.rows(block); ++r) {
      const std::int64_t query = plan_.query(block, r), head = plan_.head(block, r);
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
    worker.engine.take(worker.tile, worker.grad_scores.data());
    return true;
  }

  // Engines write whole groups of sixteen rows.
  void clear_grad_queries(std::int64_t rows, Worker& worker) {
    worker.grad_queries.assign(static_cast<std::size_t>((rows + simd::lanes) * worker.engine.key_row()),
                               0.0f);
  }
  float* rows_of(const QueryBlock& block, float* grad_queries, const Worker& worker) const {
    return grad_queries + block.first * problem_.group_size() * worker.engine.key_row();
  }

  void store_grad_queries(const QueryBlock& block, float* rows, Worker& worker) {
    for (std::int64_t r = 0; r < plan_.rows(block); ++r) {
      float* row = rows + r * worker.engine.key_row();
      simd::scale(row, problem_.scale_or_default(), problem_.head_dim);
      store_gradient(row, tensors_.grad_q, plan_.query(block, r), plan_.head(block, r));
    }
  }

  void store_grad_keys(int sequence, int kv_head, const KeyTile& keys, Worker& worker) {
    worker.engine.finish_grad_keys();
    for (std::int64_t j = 0; j < keys.count; ++j) {
      const std::int64_t row = first_key_[static_cast<std::size_t>(sequence)] + keys.first + j;
      float* grad_key = worker.engine.grad_key(j);
      simd::scale(grad_key, problem_.scale_or_default(), problem_.head_dim);
      store_gradient(grad_key, tensors_.grad_k, row, kv_head);
      store_gradient(worker.engine.grad_value(j), tensors_.grad_v, row, kv_head);
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
