#include "implementations/cpu/dot_gradients.h"

#include <algorithm>

#include "implementations/cpu/dot_rows.h"
#include "implementations/cpu/finite.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/query_rows.h"

namespace chorale::tiled {
namespace {

AlignedVector<bfloat16> elements(std::int64_t count) {
  return AlignedVector<bfloat16>(static_cast<std::size_t>(count));
}
AlignedVector<float> floats(std::int64_t count) {
  return AlignedVector<float>(static_cast<std::size_t>(count));
}

}  // namespace

void DotGradients::Queries::hold(int sequence, int first_head, int heads) {
  first_head_ = first_head;
  const std::int64_t blocks = heads * plan_.block_count(sequence);
  resize(queries_, blocks, plan_.problem().head_dim);
  resize(grad_outs_, blocks, plan_.problem().value_dim());
}

// With zeros, also where a block's rows or dimensions end.
void DotGradients::Queries::resize(Store& store, std::int64_t blocks, std::int64_t dim) const {
  const std::int64_t rows = blocks * plan_.most_rows_padded();
  store.rows.assign(static_cast<std::size_t>(rows * simd::round_up(dim, 32)), bfloat16{});
  store.transposed.assign(static_cast<std::size_t>(rows * simd::round_up(dim)), bfloat16{});
}

void DotGradients::Queries::prepare(const QueryBlock& block) {
  fill(queries_, block, tensors_.q, plan_.problem().head_dim);
  fill(grad_outs_, block, tensors_.grad_out, plan_.problem().value_dim());
}

void DotGradients::Queries::fill(Store& store, const QueryBlock& block, const TensorView& tensor,
                                 std::int64_t dim) {
  const std::int64_t most = plan_.most_rows_padded(), rows = plan_.rows(block), row = simd::round_up(dim, 32);
  bfloat16* to = store.rows.data() + slot(block) * most * row;
  load_block(plan_, block, tensor, to, row);
  bfloat16* transposed = store.transposed.data() + slot(block) * most * simd::round_up(dim);
  for (std::int64_t c = 0; c < dim; ++c)
    for (std::int64_t r = 0; r < rows; ++r) transposed[c * most + r] = to[r * row + c];
}

DotGradients::BlockMatrix DotGradients::Queries::matrix(const Store& store, const QueryBlock& block,
                                                        std::int64_t dim) const {
  const std::int64_t most = plan_.most_rows_padded();
  return {store.rows.data() + slot(block) * most * simd::round_up(dim, 32),
          store.transposed.data() + slot(block) * most * simd::round_up(dim)};
}

DotGradients::DotGradients(const TiledPlan& plan, const BackwardTensors& tensors)
    : plan_(plan),
      tensors_(tensors),
      level_(simd::DotLevel::avx512_bf16),
      rows_(plan.most_rows_padded()),
      key_row_(simd::round_up(plan.problem().head_dim)),
      value_row_(simd::round_up(plan.problem().value_dim())),
      key_inner_(simd::round_up(plan.problem().head_dim, 32)),
      value_inner_(simd::round_up(plan.problem().value_dim(), 32)),
      row_(static_cast<std::size_t>(width)),
      tile_rows_(elements(width * std::max(plan.problem().head_dim, plan.problem().value_dim()))),
      keys_by_dim_(elements(key_inner_ * width)),
      keys_by_key_(elements(width * key_row_)),
      values_by_dim_(elements(value_inner_ * width)),
      p_(elements(rows_ * width)),
      grad_scores_(p_),
      p_by_query_(p_),
      grad_scores_by_query_(p_),
      grad_keys_transposed_(floats(key_row_ * width)),
      grad_values_transposed_(floats(value_row_ * width)),
      grad_keys_(grad_keys_transposed_),
      grad_values_(grad_values_transposed_) {
  for (std::int64_t r = 0; r < rows_; ++r) {
    p_row_.push_back(p_.data() + r * width);
    grad_score_row_.push_back(grad_scores_.data() + r * width);
  }
}

void DotGradients::load_keys(int sequence, int kv_head, std::int64_t first, std::int64_t count) {
  const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, sequence, kv_head, false);
  const KeyRows values(plan_, tensors_.v, tensors_.v_scale, sequence, kv_head, true);
  keys.locate(first, count, row_.data(), tile_rows_.data());
  simd::pack_pairs_transposed(row_.data(), count, keys.dim(), keys_by_dim_.data(), 2 * width);
  simd::pack_pairs(row_.data(), count, keys.dim(), keys_by_key_.data(), 2 * key_row_);
  values.locate(first, count, row_.data(), tile_rows_.data());
  simd::pack_pairs_transposed(row_.data(), count, values.dim(), values_by_dim_.data(), 2 * width);
}

void DotGradients::load_queries(const Queries& all, const QueryBlock& block, std::int64_t) {
  queries_ = all.queries(block);
  grad_outs_ = all.grad_outs(block);
}

void DotGradients::scores(ScoreTile& tile) {
  simd::dot_product(level_, {simd::round_up(tile.rows()), simd::round_up(tile.count()), key_inner_},
                    queries_.rows, key_inner_, keys_by_dim_.data(), 2 * width, tile.data(), width, false);
}

void DotGradients::grad_probabilities(ScoreTile& tile, float* out) {
  simd::dot_product(level_, {simd::round_up(tile.rows()), simd::round_up(tile.count()), value_inner_},
                    grad_outs_.rows, value_inner_, values_by_dim_.data(), 2 * width, out, width, false);
}

// Rounds P and dS, hidden pairs exactly 0, zeros up to whole groups of keys and queries.
void DotGradients::take(ScoreTile& tile, const float* grad_scores) {
  const std::int64_t padded = simd::round_up(tile.count(), 32);
  for (std::int64_t r = 0; r < tile.rows(); ++r) {
    bfloat16 *p = p_.data() + r * width, *gradient = grad_scores_.data() + r * width;
    simd::from_float(tile.row(r), DType::bfloat16, p, tile.count());
    simd::from_float(grad_scores + r * width, DType::bfloat16, gradient, tile.count());
    std::fill(p + tile.count(), p + padded, bfloat16{0});
    std::fill(gradient + tile.count(), gradient + padded, bfloat16{0});
    if (tile.visible() == nullptr) continue;
    const std::uint8_t* visible = tile.visible() + r * width;
    for (std::int64_t k = 0; k < tile.count(); ++k)
      if (!visible[k]) p[k] = gradient[k] = bfloat16{0};
  }
  for (std::int64_t r = tile.rows(); r < simd::round_up(tile.rows()); ++r)
    std::fill_n(grad_scores_.begin() + r * width, width, bfloat16{0});
  simd::pack_pairs(p_row_.data(), tile.rows(), padded, p_by_query_.data(), 2 * width);
  simd::pack_pairs(grad_score_row_.data(), tile.rows(), padded, grad_scores_by_query_.data(), 2 * width);
}

void DotGradients::clear_grad_keys() {
  std::fill(grad_keys_transposed_.begin(), grad_keys_transposed_.end(), 0.0f);
  std::fill(grad_values_transposed_.begin(), grad_values_transposed_.end(), 0.0f);
}

void DotGradients::add_grad_keys(ScoreTile& tile) {
  add_transposed(tile, grad_outs_, p_by_query_, value_row_, grad_values_transposed_.data());
  add_transposed(tile, queries_, grad_scores_by_query_, key_row_, grad_keys_transposed_.data());
}

// out [dim, width] += left^T right. Where the mask hides pairs and left is not finite, a key at a time, with
// the rows that the key is hidden from set to zero.
void DotGradients::add_transposed(ScoreTile& tile, const BlockMatrix& left, const Elements& right,
                                  std::int64_t dim, float* out) {
  const std::int64_t inner = simd::round_up(tile.rows(), 32), columns = simd::round_up(tile.count());
  if (tile.visible() == nullptr || all_finite(left.transposed, dim * rows_))
    return simd::dot_product(level_, {dim, columns, inner}, left.transposed, rows_, right.data(), 2 * width,
                             out, width, true);
  AlignedVector<float> sums(static_cast<std::size_t>(dim * simd::lanes));
  for (std::int64_t k = 0; k < tile.count(); ++k) {
    Elements shown(left.transposed, left.transposed + dim * rows_);
    for (std::int64_t r = 0; r < tile.rows(); ++r)
      if (!tile.visible()[r * width + k])
        for (std::int64_t c = 0; c < dim; ++c) shown[static_cast<std::size_t>(c * rows_ + r)] = {0};
    const std::int64_t group = k / simd::lanes * simd::lanes;
    for (std::int64_t c = 0; c < dim; ++c)
      std::copy_n(out + c * width + group, simd::lanes, sums.begin() + c * simd::lanes);
    simd::dot_product(level_, {dim, simd::lanes, inner}, shown.data(), rows_, right.data() + 2 * group,
                      2 * width, sums.data(), simd::lanes, true);
    for (std::int64_t c = 0; c < dim; ++c)
      out[c * width + k] = sums[static_cast<std::size_t>(c * simd::lanes + k - group)];
  }
}

void DotGradients::add_grad_queries(ScoreTile& tile, float* grad_queries) {
  const std::int64_t inner = simd::round_up(tile.count(), 32);
  if (tile.visible() == nullptr || all_finite(keys_by_key_.data(), inner * key_row_)) {
    simd::dot_product(level_, {simd::round_up(tile.rows()), key_row_, inner}, grad_scores_.data(), width,
                      keys_by_key_.data(), 2 * key_row_, grad_queries, key_row_, true);
    return;
  }
  for (std::int64_t r = 0; r < tile.rows(); ++r)
    add_row_without_hidden(level_, grad_scores_.data() + r * width, keys_by_key_.data(), key_row_,
                           tile.visible() + r * width, tile.count(), grad_queries + r * key_row_);
}

void DotGradients::finish_grad_keys() {
  simd::transpose(grad_keys_transposed_.data(), width, key_row_, width, grad_keys_.data(), key_row_);
  simd::transpose(grad_values_transposed_.data(), width, value_row_, width, grad_values_.data(), value_row_);
}

}  // namespace chorale::tiled
