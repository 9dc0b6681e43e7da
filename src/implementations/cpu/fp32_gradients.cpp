#include "implementations/cpu/fp32_gradients.h"

#include <algorithm>

#include "implementations/cpu/finite.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/query_rows.h"

namespace chorale::tiled {
namespace {

std::vector<float> floats(std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count)); }

}  // namespace

Fp32Gradients::Fp32Gradients(const TiledPlan& plan, const BackwardTensors& tensors, const Queries&)
    : plan_(plan),
      tensors_(tensors),
      key_row_(simd::round_up(plan.problem().head_dim)),
      value_row_(simd::round_up(plan.problem().value_dim())),
      queries_(floats(plan.most_rows() * key_row_)),
      grad_outs_(floats(plan.most_rows() * value_row_)),
      keys_(floats(width * key_row_)),
      keys_transposed_(keys_),
      values_(floats(width * value_row_)),
      values_transposed_(values_),
      grad_keys_(keys_),
      grad_values_(values_) {}

void Fp32Gradients::load_keys(int sequence, int kv_head, std::int64_t first, std::int64_t count) {
  const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, sequence, kv_head, false);
  const KeyRows values(plan_, tensors_.v, tensors_.v_scale, sequence, kv_head, true);
  keys.load(first, count, keys_.data(), key_row_);
  values.load(first, count, values_.data(), value_row_);
  simd::transpose(keys_.data(), key_row_, count, keys.dim(), keys_transposed_.data(), width);
  simd::transpose(values_.data(), value_row_, count, values.dim(), values_transposed_.data(), width);
}

void Fp32Gradients::load_queries(const QueryBlock& block) {
  load_block(plan_, block, tensors_.q, queries_.data(), key_row_);
  load_block(plan_, block, tensors_.grad_out, grad_outs_.data(), value_row_);
}

void Fp32Gradients::scores(ScoreTile& tile) {
  simd::multiply({tile.rows(), tile.count(), plan_.problem().head_dim}, {queries_.data(), key_row_, 1},
                 keys_transposed_.data(), width, tile.data(), width, false);
}

void Fp32Gradients::grad_probabilities(ScoreTile& tile, float* out) {
  simd::multiply({tile.rows(), tile.count(), plan_.problem().value_dim()}, {grad_outs_.data(), value_row_, 1},
                 values_transposed_.data(), width, out, width, false);
}

void Fp32Gradients::take(ScoreTile&, const float* grad_scores) { grad_scores_ = grad_scores; }

void Fp32Gradients::clear_grad_keys() {
  std::fill(grad_keys_.begin(), grad_keys_.end(), 0.0f);
  std::fill(grad_values_.begin(), grad_values_.end(), 0.0f);
}

// out += a * b over the pairs that the mask shows; `a` lies like the tile, perhaps transposed.
void Fp32Gradients::add(const simd::ProductShape& shape, const simd::Operand& a, const float* b,
                        std::int64_t row, const ScoreTile& tile, float* out) {
  if (tile.visible() == nullptr ||
      (all_finite(a.data, tile.rows() * width) && all_finite(b, shape.inner * row)))
    simd::multiply(shape, a, b, row, out, row, true);
  else
    simd::multiply_visible(shape, a, b, row, tile.visible(), out, row, true);
}

void Fp32Gradients::add_grad_keys(ScoreTile& tile) {
  const Problem& problem = plan_.problem();
  add({tile.count(), problem.value_dim(), tile.rows()}, {tile.data(), 1, width}, grad_outs_.data(),
      value_row_, tile, grad_values_.data());
  add({tile.count(), problem.head_dim, tile.rows()}, {grad_scores_, 1, width}, queries_.data(), key_row_,
      tile, grad_keys_.data());
}

void Fp32Gradients::add_grad_queries(ScoreTile& tile, float* grad_queries) {
  add({tile.rows(), plan_.problem().head_dim, tile.count()}, {grad_scores_, width, 1}, keys_.data(), key_row_,
      tile, grad_queries);
}

}  // namespace chorale::tiled
