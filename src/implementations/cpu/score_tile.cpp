#include "implementations/cpu/score_tile.h"

#include <algorithm>
#include <array>
#include <bit>
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

Coverage ScoreTile::cover(const QueryBlock& block, std::int64_t first_row, std::int64_t rows,
                          std::int64_t first, std::int64_t count) const {
  if (plan_.problem().mask.is_all()) return Coverage::full;
  const std::int64_t group = plan_.problem().group_size();
  const std::int64_t head = plan_.problem().first_query_head + plan_.head(block, 0);
  return classify(plan_.problem().mask.program(),
                  {.b = {block.sequence, block.sequence},
                   .h = {head, head + group - 1},
                   .q = {plan_.position(block.sequence, block.first + first_row / group),
                         plan_.position(block.sequence, block.first + (first_row + rows - 1) / group)},
                   .k = {first, first + count - 1}});
}

ScoreTile::Part ScoreTile::visible_part(const QueryBlock& block, std::int64_t first_row, std::int64_t rows,
                                        std::int64_t first, std::int64_t count, std::int64_t step) const {
  if (plan_.sequence_rows(block.sequence) <= few_rows)
    return {cover(block, first_row, rows, first, count), first, count};
  const auto [any, all] = plan_.visibility().seen(
      block.sequence, block.kv_head, block.first * plan_.problem().group_size() + first_row, rows, first);
  if (any == 0) return {Coverage::empty, first, 0};
  const std::int64_t skipped = std::countr_zero(any) / step * step;
  const std::int64_t end = std::min(count, simd::round_up(64 - std::countl_zero(any), step));
  const bool is_full = std::countr_one(all >> skipped) >= end - skipped;
  return {is_full ? Coverage::full : Coverage::partial, first + skipped, end - skipped};
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

// From the plan's words where it has them, eight keys at a time.
void ScoreTile::find_visible(std::int64_t r, std::uint8_t* shown) {
  if (plan_.sequence_rows(block_.sequence) <= few_rows) return mask_.mask(start(r), count_, shown);
  static constexpr auto spread = [] {
    std::array<std::array<std::uint8_t, 8>, 256> bytes{};
    for (std::size_t byte = 0; byte < bytes.size(); ++byte)
      for (std::size_t bit = 0; bit < 8; ++bit) bytes[byte][bit] = byte >> bit & 1;
    return bytes;
  }();
  const std::int64_t row = block_.first * plan_.problem().group_size() + first_row_ + r;
  std::uint64_t keys =
      plan_.visibility().seen(block_.sequence, block_.kv_head, row, 1, first_ - offset()).any >> offset();
  for (std::int64_t i = 0; i < count_; i += 8, keys >>= 8)
    std::copy_n(spread[keys & 255].begin(), std::min<std::int64_t>(8, count_ - i), shown + i);
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
      find_visible(r, shown);
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
