// The backward pass (Dao et al. 2022, appendix B). With P = exp(score - LSE), recomputed tile by tile:
//
//     delta_i = sum_c grad_out_ic out_ic
//     dS_ij   = P_ij (grad_out_i . V_j - delta_i) * d score / d (scale q.k)
//     grad_V_j = sum_i P_ij grad_out_i        over query rows ascending, the heads of a group innermost
//     grad_K_j = scale sum_i dS_ij Q_i        the same
//     grad_Q_i = scale sum_j dS_ij K_j        over keys ascending
//     grad_sink_h = - sum_i exp(sink_h - LSE_i) delta_i
//
// Each sum is one chain per element in that order, held in float32 between tiles. So it makes no difference whether one
// pass over a sequence's tiles feeds all three (fewer products), or keys and queries are cut into tasks of their own
// (more tasks): the number of tasks decides.
#include "implementations/cpu/backward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "base/float.h"
#include "base/threads.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/score_tile.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

using Floats = std::vector<float>;

// One thread's memory for one pair of a query block and a key tile.
struct Worker {
  explicit Worker(const TiledPlan& plan)
      : tile(plan),
        key_row(simd::round_up(plan.problem().head_dim)),
        value_row(simd::round_up(plan.problem().value_dim())),
        queries(size(plan.most_rows() * key_row)),
        grad_outs(size(plan.most_rows() * value_row)),
        keys(size(tile_keys * key_row)),
        keys_transposed(keys.size()),
        values(size(tile_keys * value_row)),
        values_transposed(values.size()),
        grad_scores(size(plan.most_rows() * tile_keys)),
        grad_keys(keys.size()),
        grad_values(values.size()) {}
  static std::size_t size(std::int64_t elements) { return static_cast<std::size_t>(elements); }

  ScoreTile tile;                        // scores, then probabilities
  std::int64_t key_row, value_row;       // padded dimensions
  Floats queries, grad_outs;             // of the block
  Floats keys, keys_transposed, values, values_transposed;
  Floats grad_scores;                    // dS
  Floats grad_keys, grad_values, grad_queries;
};

struct KeyTile {
  std::int64_t first, count;
};

class Backward {
 public:
  Backward(const TiledPlan& plan, const BackwardTensors& tensors)
      : plan_(plan), problem_(plan.problem()), tensors_(tensors), workers_(static_cast<std::size_t>(plan.threads())) {}

  void run() {
    compute_deltas();
    if (problem_.sinks) sum_grad_sinks();
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
      parallel_for(plan_.block_count(sequence) * problem_.kv_heads, plan_.threads(), [&](std::int64_t i, int w) {
        query_block(plan_.block(sequence, static_cast<int>(i % problem_.kv_heads), i / problem_.kv_heads), at(w));
      });
    }
  }

 private:
  Worker& at(int index) {
    auto& worker = workers_[static_cast<std::size_t>(index)];
    if (!worker) worker.emplace(plan_);
    return *worker;
  }

  std::int64_t tiles(int sequence) const { return (plan_.keys(sequence) + tile_keys - 1) / tile_keys; }
  KeyTile tile(int sequence, std::int64_t index) const {
    return {index * tile_keys, std::min(tile_keys, plan_.keys(sequence) - index * tile_keys)};
  }

  float lse(std::int64_t query, std::int64_t head) const {
    return load_element(tensors_.lse.data, DType::float32, query * tensors_.lse.stride[0] + head * tensors_.lse.stride[1]);
  }
  float& delta(std::int64_t query, std::int64_t head) { return deltas_[static_cast<std::size_t>(query * problem_.query_heads + head)]; }

  void compute_deltas() {
    deltas_.resize(static_cast<std::size_t>(plan_.batch().total_q()) * static_cast<std::size_t>(problem_.query_heads));
    const std::int64_t dim = problem_.value_dim();
    parallel_for(static_cast<std::int64_t>(plan_.blocks().size()), plan_.threads(), [&](std::int64_t i, int w) {
      const QueryBlock& block = plan_.blocks()[static_cast<std::size_t>(i)];
      Worker& worker = at(w);
      Floats outs(worker.grad_outs.size());
      load_block(plan_, block, tensors_.grad_out, worker.grad_outs.data(), worker.value_row);
      load_block(plan_, block, tensors_.out, outs.data(), worker.value_row);
      for (std::int64_t r = 0; r < plan_.rows(block); ++r)
        delta(plan_.query(block, r), plan_.head(block, r)) =
            simd::dot(worker.grad_outs.data() + r * worker.value_row, outs.data() + r * worker.value_row, dim);
    });
  }

  void sum_grad_sinks() {
    for (int head = 0; head < problem_.query_heads; ++head) {
      const float sink = load_element(tensors_.sinks.data, DType::float32, head * tensors_.sinks.stride[0]);
      float sum = 0;
      for (std::int64_t query = 0; query < plan_.batch().total_q(); ++query) {
        float p = sink - lse(query, head);
        simd::exp(&p, &p, 1);
        sum = std::fma(-p, delta(query, head), sum);
      }
      store_element(tensors_.grad_sinks.data, DType::float32, head * tensors_.grad_sinks.stride[0], sum);
    }
  }

  // All gradients of one sequence and KV head: each key tile meets each query block once.
  void one_pass(int sequence, int kv_head, Worker& worker) {
    const std::int64_t rows = static_cast<std::int64_t>(plan_.batch().q_len(sequence)) * problem_.group_size();
    worker.grad_queries.assign(static_cast<std::size_t>(rows * worker.key_row), 0.0f);
    for (std::int64_t j = 0; j < tiles(sequence); ++j) key_tile(sequence, kv_head, j, worker, worker.grad_queries.data());
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i) {
      const QueryBlock block = plan_.block(sequence, kv_head, i);
      store_grad_queries(block, worker.grad_queries.data() + block.first * problem_.group_size() * worker.key_row, worker);
    }
  }

  // grad_K and grad_V of one key tile; adds to grad_queries [all rows, key_row] where that is given.
  void key_tile(int sequence, int kv_head, std::int64_t index, Worker& worker, float* grad_queries) {
    const KeyTile keys = tile(sequence, index);
    load_keys(sequence, kv_head, keys, worker);
    std::fill(worker.grad_keys.begin(), worker.grad_keys.end(), 0.0f);
    std::fill(worker.grad_values.begin(), worker.grad_values.end(), 0.0f);
    for (std::int64_t i = 0; i < plan_.block_count(sequence); ++i) {
      const QueryBlock block = plan_.block(sequence, kv_head, i);
      if (!grad_scores(block, keys, worker, true)) continue;
      const simd::Operand probabilities{worker.tile.data(), 1, tile_keys}, gradients{worker.grad_scores.data(), 1, tile_keys};
      const std::int64_t rows = plan_.rows(block);
      add_product({keys.count, problem_.value_dim(), rows}, probabilities, worker.grad_outs.data(), worker.value_row, worker,
                  worker.grad_values.data());
      add_product({keys.count, problem_.head_dim, rows}, gradients, worker.queries.data(), worker.key_row, worker,
                  worker.grad_keys.data());
      if (grad_queries != nullptr) add_grad_queries(block, keys, worker, grad_queries + block.first * problem_.group_size() * worker.key_row);
    }
    store_grad_keys(sequence, kv_head, keys, worker);
  }

  // grad_Q of one query block.
  void query_block(const QueryBlock& block, Worker& worker) {
    worker.grad_queries.assign(static_cast<std::size_t>(plan_.rows(block) * worker.key_row), 0.0f);
    load_queries(block, worker);
    for (std::int64_t j = 0; j < tiles(block.sequence); ++j) {
      const KeyTile keys = tile(block.sequence, j);
      if (worker.tile.cover(block, keys.first, keys.count) == Coverage::empty) continue;
      load_keys(block.sequence, block.kv_head, keys, worker);
      if (grad_scores(block, keys, worker, false)) add_grad_queries(block, keys, worker, worker.grad_queries.data());
    }
    store_grad_queries(block, worker.grad_queries.data(), worker);
  }

  void load_queries(const QueryBlock& block, Worker& worker) {
    load_block(plan_, block, tensors_.q, worker.queries.data(), worker.key_row);
    load_block(plan_, block, tensors_.grad_out, worker.grad_outs.data(), worker.value_row);
  }

  void load_keys(int sequence, int kv_head, const KeyTile& keys, Worker& worker) {
    const KeyRows key_rows(plan_, tensors_.k, tensors_.k_scale, sequence, kv_head, false);
    const KeyRows value_rows(plan_, tensors_.v, tensors_.v_scale, sequence, kv_head, true);
    key_rows.load(keys.first, keys.count, worker.keys.data(), worker.key_row);
    value_rows.load(keys.first, keys.count, worker.values.data(), worker.value_row);
    simd::transpose(worker.keys.data(), worker.key_row, keys.count, problem_.head_dim, worker.keys_transposed.data(), tile_keys);
    simd::transpose(worker.values.data(), worker.value_row, keys.count, problem_.value_dim(), worker.values_transposed.data(), tile_keys);
  }

  // P into worker.tile and dS into worker.grad_scores for one pair; false if the mask hides all of it.
  bool grad_scores(const QueryBlock& block, const KeyTile& keys, Worker& worker, bool load) {
    const Coverage coverage = worker.tile.cover(block, keys.first, keys.count);
    if (coverage == Coverage::empty) return false;
    if (load) load_queries(block, worker);
    worker.tile.compute(block, worker.queries.data(), worker.key_row, worker.keys_transposed.data(), keys.first, keys.count, coverage);
    simd::multiply({plan_.rows(block), keys.count, problem_.value_dim()}, {worker.grad_outs.data(), worker.value_row, 1},
                   worker.values_transposed.data(), tile_keys, worker.grad_scores.data(), tile_keys, false);
    for (std::int64_t r = 0; r < plan_.rows(block); ++r) {
      const std::int64_t query = plan_.query(block, r), head = plan_.head(block, r);
      float* p = worker.tile.row(r);
      const float row_lse = lse(query, head);
      if (row_lse == -std::numeric_limits<float>::infinity()) std::fill_n(p, keys.count, 0.0f);  // the row sees nothing
      else simd::exp2_scaled(p, worker.tile.log2_factor(), row_lse * log2_e, p, keys.count);
      float* gradient = worker.grad_scores.data() + r * tile_keys;
      const float row_delta = delta(query, head);
      for (std::int64_t j = 0; j < keys.count; ++j) gradient[j] = p[j] * (gradient[j] - row_delta);
    }
    worker.tile.apply_derivative(worker.grad_scores.data());
    return true;
  }

  // out += a * b over the pairs that the mask shows; `a` lies like the tile, perhaps transposed.
  static void add_product(const simd::ProductShape& shape, const simd::Operand& a, const float* b, std::int64_t row, Worker& worker,
                          float* out) {
    if (const std::uint8_t* visible = worker.tile.visible()) simd::multiply_visible(shape, a, b, row, visible, out, row, true);
    else simd::multiply(shape, a, b, row, out, row, true);
  }

  void add_grad_queries(const QueryBlock& block, const KeyTile& keys, Worker& worker, float* grad_queries) {
    add_product({plan_.rows(block), problem_.head_dim, keys.count}, {worker.grad_scores.data(), tile_keys, 1}, worker.keys.data(),
                worker.key_row, worker, grad_queries);
  }

  static std::byte* address(const TensorView& tensor, std::int64_t row, std::int64_t head) {
    return static_cast<std::byte*>(tensor.data) +
           (row * tensor.stride[0] + head * tensor.stride[1]) * static_cast<std::int64_t>(size_of(tensor.dtype));
  }

  void store_grad_queries(const QueryBlock& block, float* rows, Worker& worker) {
    for (std::int64_t r = 0; r < plan_.rows(block); ++r) {
      float* row = rows + r * worker.key_row;
      simd::scale(row, problem_.scale_or_default(), problem_.head_dim);
      simd::from_float(row, tensors_.grad_q.dtype, address(tensors_.grad_q, plan_.query(block, r), plan_.head(block, r)), problem_.head_dim);
    }
  }

  void store_grad_keys(int sequence, int kv_head, const KeyTile& keys, Worker& worker) {
    for (std::int64_t j = 0; j < keys.count; ++j) {
      const std::int64_t row = first_key_[static_cast<std::size_t>(sequence)] + keys.first + j;
      float* grad_key = worker.grad_keys.data() + j * worker.key_row;
      simd::scale(grad_key, problem_.scale_or_default(), problem_.head_dim);
      simd::from_float(grad_key, tensors_.grad_k.dtype, address(tensors_.grad_k, row, kv_head), problem_.head_dim);
      simd::from_float(worker.grad_values.data() + j * worker.value_row, tensors_.grad_v.dtype, address(tensors_.grad_v, row, kv_head),
                       problem_.value_dim());
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
  std::vector<std::int64_t> first_key_ = first_keys(plan_.batch());
  Floats deltas_;                                   // [total_q, query_heads]
  std::vector<std::optional<Worker>> workers_;
};

}  // namespace

void backward(const TiledPlan& plan, const BackwardTensors& tensors) { Backward(plan, tensors).run(); }

}  // namespace chorale::tiled
