#include "implementations/cpu/score_tile.h"

#include <algorithm>
#include <limits>

#include "simd/simd.h"

namespace chorale::tiled {

ScoreTile::ScoreTile(const TiledPlan& plan, std::int64_t most_rows, std::int64_t width)
    : plan_(plan),
      mask_(plan.problem().mask.program()),
      score_(plan.problem().score.program()),
      derivative_(plan.problem().score.derivative()),
      scale_(plan.scale()),
      log2_factor_(plan.log2_factor()),
      natural_factor_(plan.natural_factor()),
      width_(width),
      scores_(static_cast<std::size_t>(most_rows * width)),
      visible_(scores_.size()) {
  if (!plan.problem().score.is_identity()) before_score_.resize(scores_.size());
}

Point ScoreTile::start(std::int64_t r) const {
  return {
      .b = block_.sequence,
      .h = plan_.problem().first_query_head + plan_.head(block_, first_row_ + r),
      .q = plan_.position(block_.sequence, block_.first + (first_row_ + r) / plan_.problem().group_size()),
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

void ScoreTile::place(const QueryBlock& block, std::int64_t first_row, std::int64_t rows, std::int64_t first,
                      std::int64_t count, Coverage coverage) {
  block_ = block;
  first_row_ = first_row;
  rows_ = rows;
  first_ = first;
  count_ = count;
  coverage_ = coverage;
}

void ScoreTile::apply_programs() {
  if (!plan_.problem().score.is_identity()) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      float* before = before_score_.data() + r * width_;
      std::copy_n(row(r), count_, before);
      simd::scale(before, scale_, count_);
      score_.score(start(r), count_, before, row(r));
    }
  }
  if (coverage_ == Coverage::partial) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      std::uint8_t* shown = visible_.data() + r * width_;
      mask_.mask(start(r), count_, shown);
      float* score = row(r);
      for (std::int64_t i = 0; i < count_; ++i)
        score[i] = shown[i] ? score[i] : -std::numeric_limits<float>::infinity();
    }
  }
}

void ScoreTile::apply_derivative(float* gradients) {
  if (plan_.problem().score.is_identity()) return;
  std::vector<float> slope(static_cast<std::size_t>(width_));
  for (std::int64_t r = 0; r < rows_; ++r) {
    derivative_.score(start(r), count_, before_score_.data() + r * width_, slope.data());
    for (std::int64_t i = 0; i < count_; ++i) gradients[r * width_ + i] *= slope[static_cast<std::size_t>(i)];
  }
}

}  // namespace chorale::tiled
