#include "implementations/cpu/score_tile.h"

#include <algorithm>
#include <limits>

#include "simd/simd.h"

namespace chorale::tiled {
void load_block(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, float* out, std::int64_t out_row) {
  const auto bytes = static_cast<std::int64_t>(size_of(tensor.dtype));
  for (std::int64_t r = 0; r < plan.rows(block); ++r) {
    const std::int64_t offset = plan.query(block, r) * tensor.stride[0] + plan.head(block, r) * tensor.stride[1];
    const auto* from = static_cast<const std::byte*>(tensor.data) + offset * bytes;
    load_row(from, tensor.dtype, tensor.stride[2], tensor.shape[2], out + r * out_row);
  }
}

ScoreTile::ScoreTile(const TiledPlan& plan)
    : plan_(plan),
      mask_(plan.problem().mask.program()),
      score_(plan.problem().score.program()),
      derivative_(plan.problem().score.derivative()),
      scale_(plan.problem().scale_or_default()),
      scores_(static_cast<std::size_t>(plan.most_rows() * tile_keys)),
      visible_(static_cast<std::size_t>(plan.most_rows() * tile_keys)) {
  if (is_mutant(plan.mutant(), Mutant::scale_1_01)) scale_ *= 1.01f;
  const bool plain = plan.problem().score.is_identity();
  if (!plain) before_score_.resize(scores_.size());
  natural_factor_ = plain ? scale_ : 1.0f;
  log2_factor_ = natural_factor_ * log2_e;
}

Point ScoreTile::start(std::int64_t r) const {
  return {.b = block_.sequence,
          .h = plan_.problem().first_query_head + plan_.head(block_, r),
          .q = plan_.position(block_.sequence, block_.first + r / plan_.problem().group_size()),
          .k = first_};
}

Coverage ScoreTile::cover(const QueryBlock& block, std::int64_t first, std::int64_t count) const {
  if (plan_.problem().mask.is_all()) return Coverage::full;
  const std::int64_t head = plan_.problem().first_query_head + plan_.head(block, 0);
  const std::int64_t position = plan_.position(block.sequence, block.first);
  return classify(plan_.problem().mask.program(), {.b = {block.sequence, block.sequence},
                                                   .h = {head, head + plan_.problem().group_size() - 1},
                                                   .q = {position, position + block.positions - 1},
                                                   .k = {first, first + count - 1}});
}

void ScoreTile::compute(const QueryBlock& block, const float* queries, std::int64_t query_row, const float* keys,
                        std::int64_t first, std::int64_t count, Coverage coverage) {
  block_ = block;
  rows_ = plan_.rows(block);
  first_ = first;
  count_ = count;
  coverage_ = coverage;
  simd::multiply({rows_, count, plan_.problem().head_dim}, {queries, query_row, 1}, keys, tile_keys, scores_.data(), tile_keys, false);

  if (!plan_.problem().score.is_identity()) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      float* before = before_score_.data() + r * tile_keys;
      std::copy_n(row(r), count, before);
      simd::scale(before, scale_, count);
      score_.score(start(r), count, before, row(r));
    }
  }
  if (coverage == Coverage::partial) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      std::uint8_t* shown = visible_.data() + r * tile_keys;
      mask_.mask(start(r), count, shown);
      float* score = row(r);
      for (std::int64_t i = 0; i < count; ++i) score[i] = shown[i] ? score[i] : -std::numeric_limits<float>::infinity();
    }
  }
}

void ScoreTile::apply_derivative(float* gradients) {
  if (plan_.problem().score.is_identity()) return;
  float slope[tile_keys];
  for (std::int64_t r = 0; r < rows_; ++r) {
    derivative_.score(start(r), count_, before_score_.data() + r * tile_keys, slope);
    for (std::int64_t i = 0; i < count_; ++i) gradients[r * tile_keys + i] *= slope[i];
  }
}

}  // namespace chorale::tiled
