#include "implementations/cpu/dot_engine.h"

#include <algorithm>

#include "implementations/cpu/dot_rows.h"
#include "implementations/cpu/query_rows.h"

namespace chorale::tiled {
DotEngine::DotEngine(const TiledPlan& plan)
    : plan_(plan),
      level_(simd::DotLevel::avx512_bf16),
      queries_(
          static_cast<std::size_t>(simd::round_up(plan.most_rows(), strip_rows) * key_dim(plan.problem()))),
      row_(static_cast<std::size_t>(width)),
      rows_(static_cast<std::size_t>(width * std::max(plan.problem().head_dim, plan.problem().value_dim()))),
      p_(static_cast<std::size_t>(strip_rows * width)) {}

void DotEngine::pack_keys(const KeyRows& keys, std::int64_t first, std::int64_t count, bfloat16* packed) {
  keys.locate(first, count, row_.data(), rows_.data());
  simd::pack_pairs_transposed(row_.data(), count, keys.dim(), packed, 2 * width);
}

void DotEngine::pack_values(const KeyRows& values, std::int64_t first, std::int64_t count, bfloat16* packed) {
  values.locate(first, count, row_.data(), rows_.data());
  simd::pack_pairs(row_.data(), count, values.dim(), packed, 2 * value_dim(plan_.problem()));
}

void DotEngine::load_queries(const QueryBlock& block, const TensorView& q) {
  load_block(plan_, block, q, queries_.data(), key_dim(plan_.problem()));
}

void DotEngine::scores(ScoreTile& tile) {
  const std::int64_t dim = key_dim(plan_.problem());
  simd::dot_product(level_, {simd::round_up(tile.rows()), simd::round_up(tile.count()), dim},
                    queries_.data() + tile.first_row() * dim, dim, keys_ + 2 * tile.offset(), 2 * width,
                    tile.data(), width, false);
}

void DotEngine::accumulate(ScoreTile& tile, float* out, std::int64_t out_row) {
  const std::int64_t inner = simd::round_up(tile.count(), 32);
  const bfloat16* values = values_ + tile.offset() * out_row;
  if (tile.visible() == nullptr || finite_values_) {
    simd::dot_product(level_, {simd::round_up(tile.rows()), out_row, inner}, p_.data(), width, values,
                      2 * out_row, out, out_row, true);
    return;
  }
  for (std::int64_t r = 0; r < tile.rows(); ++r)
    add_row_without_hidden(level_, p_.data() + r * width, values, out_row, tile.visible() + r * width,
                           tile.count(), out + r * out_row);
}

}  // namespace chorale::tiled
