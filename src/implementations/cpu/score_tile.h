// Scores of some rows of a query block against one tile of keys, and what the problem's programs make of
// them. Every engine and both passes share it; only the products differ.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "implementations/cpu/plan.h"
#include "mask/program.h"

namespace chorale::tiled {

class ScoreTile {
 public:
  // Room for `most_rows` rows of `width` scores.
  ScoreTile(const TiledPlan& plan, std::int64_t most_rows, std::int64_t width);

  // What the mask shows of keys [first, first + count) to a block: interval arithmetic, nothing is computed.
  Coverage cover(const QueryBlock& block, std::int64_t first, std::int64_t count) const {
    return cover(block, 0, plan_.rows(block), first, count);
  }
  // The same for rows [first_row, first_row + rows) of the block.
  Coverage cover(const QueryBlock& block, std::int64_t first_row, std::int64_t rows, std::int64_t first,
                 std::int64_t count) const;

  // The smallest range of the `count` keys from `first` on, a multiple of `width`, that holds all that rows
  // [first_row, first_row + rows) see, in steps of `step` keys, and whether they see all of it. Exact where
  // `cover` may say partial of what is not.
  struct Part {
    Coverage coverage;
    std::int64_t first, count;
  };
  Part visible_part(const QueryBlock& block, std::int64_t first_row, std::int64_t rows, std::int64_t first,
                    std::int64_t count, std::int64_t step) const;

  // Which scores come next: rows [first_row, first_row + rows) of the block against keys [first, first +
  // count).
  void place(const QueryBlock& block, std::int64_t first_row, std::int64_t rows, std::int64_t first,
             std::int64_t count, Coverage coverage);
  // Turns the products query . key that an engine has written into scores: hidden pairs are -inf.
  void apply_programs();
  // Multiplies gradients of the scores, laid out as the tile is, by the score program's derivative.
  void apply_derivative(float* gradients);

  std::int64_t rows() const { return rows_; }
  std::int64_t first_row() const { return first_row_; }
  std::int64_t first() const { return first_; }
  std::int64_t offset() const { return first_ % width_; }  // of its first key within a tile of whole width
  std::int64_t count() const { return count_; }
  std::int64_t width() const { return width_; }
  Coverage coverage() const { return coverage_; }
  float* data() { return scores_.data(); }
  float* row(std::int64_t r) { return scores_.data() + r * width_; }
  // 1 or 0 for each pair, laid out as the tile is; null where every pair is visible.
  const std::uint8_t* visible() const { return coverage_ == Coverage::full ? nullptr : visible_.data(); }

  // exp(score) = exp2(value * log2_factor()) for the values in this tile; natural score = value *
  // natural_factor().
  float log2_factor() const { return log2_factor_; }
  float natural_factor() const { return natural_factor_; }

 private:
  Point start(std::int64_t r) const;
  void find_visible(std::int64_t r, std::uint8_t* shown);

  const TiledPlan& plan_;
  RowEvaluator mask_, score_, derivative_;
  float scale_, log2_factor_, natural_factor_;
  std::int64_t width_;
  QueryBlock block_;
  std::int64_t first_row_ = 0, rows_ = 0, first_ = 0, count_ = 0;
  Coverage coverage_ = Coverage::empty;
  AlignedVector<float> scores_;
  AlignedVector<float> before_score_;  // scale * (query . key): what the score program and its derivative see
  std::vector<std::uint8_t> visible_;
};

}  // namespace chorale::tiled
