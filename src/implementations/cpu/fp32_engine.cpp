#include "implementations/cpu/fp32_engine.h"

#include <algorithm>

#include "implementations/cpu/panels.h"
#include "implementations/cpu/query_rows.h"
#include "simd/product.h"

namespace chorale::tiled {

Fp32Engine::Fp32Engine(const TiledPlan& plan)
    : plan_(plan),
      queries_(static_cast<std::size_t>(plan.most_rows() * plan.problem().head_dim)),
      rows_(static_cast<std::size_t>(
          width *
          std::max<std::int64_t>(plan.problem().head_dim, simd::round_up(plan.problem().value_dim())))) {}

void Fp32Engine::pack_keys(const KeyRows& keys, std::int64_t first, std::int64_t count, float* packed) {
  keys.load(first, count, rows_.data(), keys.dim());
  pack_panels_transposed(rows_.data(), keys.dim(), count, keys.dim(), packed);
}

void Fp32Engine::pack_values(const KeyRows& values, std::int64_t first, std::int64_t count, float* packed) {
  const std::int64_t row = simd::round_up(values.dim());
  values.load(first, count, rows_.data(), row);
  pack_panels(rows_.data(), row, count, row, width, packed);
}

void Fp32Engine::load_queries(const QueryBlock& block, const TensorView& q) {
  load_block(plan_, block, q, queries_.data(), plan_.problem().head_dim);
}

void Fp32Engine::ask_for_share(const ScoreTile& tile, const float* next, std::int64_t elements,
                               simd::ProductArguments& product) const {
  if (next == nullptr) return;
  const std::int64_t first = tile.first_row() * elements / rows_to_come_;
  product.ahead = next + first;
  product.ahead_floats = (tile.first_row() + tile.rows()) * elements / rows_to_come_ - first;
}

void Fp32Engine::scores(ScoreTile& tile) {
  const std::int64_t dim = plan_.problem().head_dim;
  simd::ProductArguments product{.shape = {tile.rows(), tile.count(), dim},
                                 .a = {queries_.data() + tile.first_row() * dim, dim, 1},
                                 .b = keys_ + tile.offset() * dim,
                                 .b_row = simd::lanes,
                                 .b_group = dim * simd::lanes,
                                 .out = tile.data(),
                                 .out_row = width,
                                 .accumulate = false};
  ask_for_share(tile, next_keys_, key_elements(plan_.problem()), product);
  simd::product(product);
}

void Fp32Engine::accumulate(ScoreTile& tile, float* out, std::int64_t out_row) {
  simd::ProductArguments product{.shape = {tile.rows(), plan_.problem().value_dim(), tile.count()},
                                 .a = {tile.data(), width, 1},
                                 .b = values_ + tile.offset() * simd::lanes,
                                 .b_row = simd::lanes,
                                 .b_group = width * simd::lanes,
                                 .out = out,
                                 .out_row = out_row,
                                 .accumulate = true};
  ask_for_share(tile, next_values_, value_elements(plan_.problem()), product);
  if (tile.visible() == nullptr || finite_values_)
    simd::product(product);
  else
    simd::product_visible(product, tile.visible());
}

}  // namespace chorale::tiled
