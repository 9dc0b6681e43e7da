// One tile of scores: a query block against up to 64 keys, with the problem's score and mask programs applied. Forward
// and backward compute it alike.
#pragma once

#include <cstdint>
#include <vector>

#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/plan.h"
#include "mask/program.h"

namespace chorale::tiled {

// Queries (or outputs, or their gradients) of a block as float32 rows, out_row floats apart.
void load_block(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, float* out, std::int64_t out_row);

class ScoreTile {
 public:
  explicit ScoreTile(const TiledPlan& plan);

  // What the mask shows of keys [first, first + count) to a block: interval arithmetic, nothing is computed.
  Coverage cover(const QueryBlock& block, std::int64_t first, std::int64_t count) const;

  // Scores of `queries` [rows, query_row] against `keys` [head_dim, tile_keys] (transposed): hidden pairs are -inf.
  void compute(const QueryBlock& block, const float* queries, std::int64_t query_row, const float* keys, std::int64_t first,
               std::int64_t count, Coverage coverage);
  // Multiplies gradients of the scores [rows, tile_keys] by the score program's derivative.
  void apply_derivative(float* gradients);

  std::int64_t rows() const { return rows_; }
  std::int64_t count() const { return count_; }
  std::int64_t first() const { return first_; }
  float* row(std::int64_t r) { return scores_.data() + r * tile_keys; }
  float* data() { return scores_.data(); }
  // 1 or 0 for each pair, [rows, tile_keys]; null where every pair is visible.
  const std::uint8_t* visible() const { return coverage_ == Coverage::full ? nullptr : visible_.data(); }

  // exp(score) = exp2(value * log2_factor()) for the values in this tile; natural score = value * natural_factor().
  float log2_factor() const { return log2_factor_; }
  float natural_factor() const { return natural_factor_; }

 private:
  Point start(std::int64_t r) const;

  const TiledPlan& plan_;
  RowEvaluator mask_, score_, derivative_;
  float scale_, log2_factor_, natural_factor_;
  QueryBlock block_;
  std::int64_t rows_ = 0, first_ = 0, count_ = 0;
  Coverage coverage_ = Coverage::empty;
  std::vector<float> scores_;
  std::vector<float> before_score_;         // scale * (query . key): what the score program and its derivative see
  std::vector<std::uint8_t> visible_;
};

}  // namespace chorale::tiled
