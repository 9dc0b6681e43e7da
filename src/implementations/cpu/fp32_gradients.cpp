#include "implementations/cpu/fp32_gradients.h"

#include <algorithm>

#include "implementations/cpu/finite.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/panels.h"
#include "implementations/cpu/query_rows.h"

namespace chorale::tiled {
namespace {

// Rows a cache line longer than they need to be: at powers of two apart, sixteen columns of many rows would
// fall into few of the first-level cache's sets.
std::int64_t row_of(std::int64_t dim) { return simd::round_up(dim) + simd::lanes; }

AlignedVector<float> floats(std::int64_t count) {
  return AlignedVector<float>(static_cast<std::size_t>(count));
}

}  // namespace

Fp32Gradients::Queries::Queries(const TiledPlan& plan, const BackwardTensors& tensors)
    : plan_(plan),
      tensors_(tensors),
      key_row_(row_of(plan.problem().head_dim)),
      value_row_(row_of(plan.problem().value_dim())) {}

void Fp32Gradients::Queries::hold(int sequence, int first_head, int heads) {
  first_head_ = first_head;
  const std::int64_t rows = heads * plan_.sequence_rows(sequence);
  queries_.resize(static_cast<std::size_t>(rows * key_row_));
  grad_outs_.resize(static_cast<std::size_t>(rows * value_row_));
}

void Fp32Gradients::Queries::prepare(const QueryBlock& block) {
  load_block(plan_, block, tensors_.q, queries_.data() + row(block) * key_row_, key_row_);
  load_block(plan_, block, tensors_.grad_out, grad_outs_.data() + row(block) * value_row_, value_row_);
}

Fp32Gradients::Fp32Gradients(const TiledPlan& plan, const BackwardTensors& tensors)
    : plan_(plan),
      tensors_(tensors),
      key_row_(row_of(plan.problem().head_dim)),
      value_row_(row_of(plan.problem().value_dim())),
      keys_(floats(width * key_row_)),
      keys_transposed_(keys_),
      key_panels_(keys_),
      values_(floats(width * value_row_)),
      values_transposed_(values_),
      grad_keys_(keys_),
      grad_values_(values_) {}

void Fp32Gradients::load_keys(int sequence, int kv_head, std::int64_t first, std::int64_t count) {
  const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, sequence, kv_head, false);
  const KeyRows values(plan_, tensors_.v, tensors_.v_scale, sequence, kv_head, true);
  keys.load(first, count, keys_.data(), key_row_);
  values.load(first, count, values_.data(), value_row_);
  pack_panels_transposed(keys_.data(), key_row_, count, keys.dim(), keys_transposed_.data());
  pack_panels_transposed(values_.data(), value_row_, count, values.dim(), values_transposed_.data());
  pack_panels(keys_.data(), key_row_, count, key_row_, width, key_panels_.data());
}

void Fp32Gradients::load_queries(const Queries& all, const QueryBlock& block, std::int64_t first_row) {
  queries_ = all.queries(block) + first_row * key_row_;
  grad_outs_ = all.grad_outs(block) + first_row * value_row_;
}

// out [rows, width] = left [rows, dim] right, the latter in panels of keys.
void Fp32Gradients::multiply_keys(const ScoreTile& tile, const float* left, std::int64_t left_row,
                                  std::int64_t dim, const AlignedVector<float>& right, float* out) {
  simd::product({.shape = {tile.rows(), tile.count(), dim},
                 .a = {left, left_row, 1},
                 .b = right.data(),
                 .b_row = simd::lanes,
                 .b_group = dim * simd::lanes,
                 .out = out,
                 .out_row = width,
                 .accumulate = false});
}

void Fp32Gradients::scores(ScoreTile& tile) {
  multiply_keys(tile, queries_, key_row_, plan_.problem().head_dim, keys_transposed_, tile.data());
}

void Fp32Gradients::grad_probabilities(ScoreTile& tile, float* out) {
  multiply_keys(tile, grad_outs_, value_row_, plan_.problem().value_dim(), values_transposed_, out);
}

void Fp32Gradients::take(ScoreTile&, const float* grad_scores) { grad_scores_ = grad_scores; }

void Fp32Gradients::clear_grad_keys() {
  std::fill(grad_keys_.begin(), grad_keys_.end(), 0.0f);
  std::fill(grad_values_.begin(), grad_values_.end(), 0.0f);
}

// out += a * b over the pairs that the mask shows; `a` lies like the tile, perhaps transposed.
void Fp32Gradients::add(const ScoreTile& tile, const simd::ProductArguments& product,
                        std::int64_t b_elements) {
  if (tile.visible() == nullptr ||
      (all_finite(product.a.data, tile.rows() * width) && all_finite(product.b, b_elements)))
    simd::product(product);
  else
    simd::product_visible(product, tile.visible());
}

void Fp32Gradients::add_grad_keys(ScoreTile& tile) {
  const auto add_sum = [&](std::int64_t dim, const float* left, const float* right, std::int64_t row,
                           AlignedVector<float>& out) {
    add(tile,
        {.shape = {tile.count(), dim, tile.rows()},
         .a = {left, 1, width},
         .b = right,
         .b_row = row,
         .b_group = simd::lanes,
         .out = out.data(),
         .out_row = row,
         .accumulate = true},
        tile.rows() * row);
  };
  add_sum(plan_.problem().value_dim(), tile.data(), grad_outs_, value_row_, grad_values_);
  add_sum(plan_.problem().head_dim, grad_scores_, queries_, key_row_, grad_keys_);
}

void Fp32Gradients::add_grad_queries(ScoreTile& tile, float* grad_queries) {
  add(tile,
      {.shape = {tile.rows(), plan_.problem().head_dim, tile.count()},
       .a = {grad_scores_, width, 1},
       .b = key_panels_.data(),
       .b_row = simd::lanes,
       .b_group = width * simd::lanes,
       .out = grad_queries,
       .out_row = key_row_,
       .accumulate = true},
      width * key_row_);
}

}  // namespace chorale::tiled
