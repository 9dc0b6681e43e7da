// The state of an online softmax over some keys, for the rows of a query block: running maximum m, sum l and weighted
// values O of each row, so that the output over those keys is O / l.
//
// It owns the edge cases: a row that has seen nothing is (m = -inf, l = 0, O = 0), hidden keys leave a row's state as
// it was to the bit, and merging with such a row changes nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "implementations/cpu/score_tile.h"

namespace chorale::tiled {

class SoftmaxState {
 public:
  SoftmaxState(std::int64_t max_rows, std::int64_t value_dim);

  void reset(std::int64_t rows);
  // Takes in one tile; its scores become probabilities. values: [count, value_row()].
  void update(ScoreTile& tile, const float* values, Mutant mutant);
  // This state, then the state of later keys. `log2_factor` as in ScoreTile.
  void merge(const SoftmaxState& later, float log2_factor);
  // Divides row r by its sum, the sink (a natural logit, or -inf) included, and returns its LSE.
  float finish(std::int64_t r, float natural_factor, float sink);

  const float* out(std::int64_t r) const { return out_.data() + r * value_row_; }
  std::int64_t value_row() const { return value_row_; }

 private:
  float* mutable_out(std::int64_t r) { return out_.data() + r * value_row_; }

  std::int64_t rows_ = 0, value_dim_, value_row_;
  std::vector<float> maximum_, sum_, out_;
};

}  // namespace chorale::tiled
