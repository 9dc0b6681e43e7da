// The state of an online softmax over some keys, for the rows of a query block: running maximum m, sum l and
// weighted values O of each row, so that the output over those keys is O / l.
//
// It owns the edge cases: a row that has seen nothing is (m = -inf, l = 0, O = 0), hidden keys leave a row's
// state as it was to the bit, and merging with such a row changes nothing.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "implementations/cpu/finish.h"
#include "implementations/cpu/score_tile.h"
#include "simd/simd.h"

namespace chorale::tiled {

class SoftmaxState {
 public:
  SoftmaxState(std::int64_t most_rows, std::int64_t value_dim);

  void reset(std::int64_t rows);
  // Takes in the rows and keys of one tile. The engine turns each row of scores into probabilities and
  // multiplies them with the values that it has loaded.
  template <class Engine>
  void update(Engine& engine, ScoreTile& tile, Mutant mutant) {
    take_scores(engine, tile, mutant);
    engine.accumulate(tile, out(tile.first_row()), value_row_);
  }
  // Its first part: maxima and sums; what out held is on the new scale, and values are still to be added.
  template <class Engine>
  void take_scores(Engine& engine, ScoreTile& tile, Mutant mutant);
  // This state, then the state of later keys. `log2_factor` as in ScoreTile.
  void merge(const SoftmaxState& later, float log2_factor);
  // What finish_rows takes.
  RowState row(std::int64_t r) { return {maximum_[r], sum_[r], out(r)}; }

  const float* out(std::int64_t r) const { return out_.data() + r * value_row_; }
  float* out(std::int64_t r) { return out_.data() + r * value_row_; }
  std::int64_t value_row() const { return value_row_; }

 private:
  static constexpr float nothing = -std::numeric_limits<float>::infinity();

  bool empty(std::int64_t r) const {
    return maximum_[r] == nothing && sum_[r] == 0.0f;
  }  // NaN is not nothing
  // Puts rows from `first` on under larger maxima.
  void rescale(std::int64_t first, std::span<const float> maxima, float log2_factor, bool rescale_out);

  std::int64_t rows_ = 0, value_dim_, value_row_;
  AlignedVector<float> maximum_, sum_, tile_sums_, factors_, out_;
};

template <class Engine>
void SoftmaxState::take_scores(Engine& engine, ScoreTile& tile, Mutant mutant) {
  const std::int64_t first = tile.first_row(), rows = tile.rows();
  std::array<simd::RowSoftmax, Engine::strip_rows> steps;
  std::array<float, Engine::strip_rows> raised;
  engine.softmax(tile, maximum_.data() + first, steps.data());
  for (std::int64_t i = 0; i < rows; ++i) {
    raised[i] = steps[i].maximum;
    tile_sums_[first + i] = steps[i].sum;
  }
  rescale(first, {raised.data(), static_cast<std::size_t>(rows)}, tile.log2_factor(),
          !(is_mutant(mutant, Mutant::skip_rescale) && tile.first() == tile.width()));
  for (std::int64_t r = first; r < first + rows; ++r) sum_[r] += tile_sums_[r];
}

}  // namespace chorale::tiled
