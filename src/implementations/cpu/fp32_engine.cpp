#include "implementations/cpu/fp32_engine.h"

#include "implementations/cpu/finite.h"
#include "implementations/cpu/query_rows.h"

namespace chorale::tiled {

Fp32Engine::Fp32Engine(const TiledPlan& plan)
    : plan_(plan),
      queries_(static_cast<std::size_t>(plan.most_rows() * plan.problem().head_dim)),
      key_rows_(static_cast<std::size_t>(width * plan.problem().head_dim)) {}

void Fp32Engine::pack_keys(const KeyRows& keys, std::int64_t first, std::int64_t count, float* packed) {
  keys.load(first, count, key_rows_.data(), keys.dim());
  simd::transpose(key_rows_.data(), keys.dim(), count, keys.dim(), packed, width);
}

void Fp32Engine::pack_values(const KeyRows& values, std::int64_t first, std::int64_t count, float* packed) {
  values.load(first, count, packed, simd::round_up(values.dim()));
}

void Fp32Engine::load_queries(const QueryBlock& block, const TensorView& q) {
  load_block(plan_, block, q, queries_.data(), plan_.problem().head_dim);
}

void Fp32Engine::scores(ScoreTile& tile) {
  const std::int64_t dim = plan_.problem().head_dim;
  simd::multiply({tile.rows(), tile.count(), dim}, {queries_.data() + tile.first_row() * dim, dim, 1}, keys_,
                 width, tile.data(), width, false);
}

void Fp32Engine::accumulate(ScoreTile& tile, float* out, std::int64_t out_row) {
  const simd::ProductShape shape{tile.rows(), plan_.problem().value_dim(), tile.count()};
  const simd::Operand p{tile.data(), width, 1};
  if (tile.visible() == nullptr || all_finite(values_, tile.count() * out_row))
    simd::multiply(shape, p, values_, out_row, out, out_row, true);
  else
    simd::multiply_visible(shape, p, values_, out_row, tile.visible(), out, out_row, true);
}

}  // namespace chorale::tiled
