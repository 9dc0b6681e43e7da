#include "implementations/cpu/softmax_state.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd/simd.h"

namespace chorale::tiled {
namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

// The larger of two; NaN stays, so that a broken score is seen in the output.
float larger(float x, float y) { return y > x || std::isnan(y) ? y : x; }

// What a state under maximum `from` is multiplied by under maximum `to`: exactly 1 where they are equal.
float rescale_factor(float from, float to, float log2_factor) {
  float factor;
  simd::exp2_difference(&from, to, log2_factor, &factor, 1);
  return factor;
}

}  // namespace

SoftmaxState::SoftmaxState(std::int64_t max_rows, std::int64_t value_dim)
    : value_dim_(value_dim),
      value_row_(simd::round_up(value_dim)),
      maximum_(static_cast<std::size_t>(max_rows)),
      sum_(static_cast<std::size_t>(max_rows)),
      out_(static_cast<std::size_t>(max_rows * value_row_)) {}

void SoftmaxState::reset(std::int64_t rows) {
  rows_ = rows;
  std::fill_n(maximum_.begin(), rows, nothing);
  std::fill_n(sum_.begin(), rows, 0.0f);
  std::fill_n(out_.begin(), rows * value_row_, 0.0f);
}

void SoftmaxState::update(ScoreTile& tile, const float* values, Mutant mutant) {
  const std::int64_t count = tile.count();
  for (std::int64_t r = 0; r < rows_; ++r) {
    float* p = tile.row(r);
    const float maximum = larger(maximum_[r], simd::max(p, count));
    if (maximum == nothing) {
      std::fill_n(p, count, 0.0f);
      continue;
    }
    simd::exp2_difference(p, maximum, tile.log2_factor(), p, count);
    if (maximum != maximum_[r]) {
      const float factor = rescale_factor(maximum_[r], maximum, tile.log2_factor());
      sum_[r] *= factor;
      if (!(is_mutant(mutant, Mutant::skip_rescale) && tile.first() == tile_keys)) simd::scale(mutable_out(r), factor, value_dim_);
      maximum_[r] = maximum;
    }
    sum_[r] += simd::sum(p, count);
  }
  const simd::ProductShape shape{rows_, value_dim_, count};
  const simd::Operand probabilities{tile.data(), tile_keys, 1};
  if (tile.visible() == nullptr) simd::multiply(shape, probabilities, values, value_row_, out_.data(), value_row_, true);
  else simd::multiply_visible(shape, probabilities, values, value_row_, tile.visible(), out_.data(), value_row_, true);
}

void SoftmaxState::merge(const SoftmaxState& later, float log2_factor) {
  for (std::int64_t r = 0; r < rows_; ++r) {
    if (later.maximum_[r] == nothing) continue;
    if (maximum_[r] == nothing) {
      maximum_[r] = later.maximum_[r];
      sum_[r] = later.sum_[r];
      std::copy_n(later.out(r), value_dim_, mutable_out(r));
      continue;
    }
    const float maximum = larger(maximum_[r], later.maximum_[r]);
    const float before = rescale_factor(maximum_[r], maximum, log2_factor);
    const float after = rescale_factor(later.maximum_[r], maximum, log2_factor);
    maximum_[r] = maximum;
    sum_[r] = std::fma(later.sum_[r], after, sum_[r] * before);
    simd::scale(mutable_out(r), before, value_dim_);
    simd::scale_add(later.out(r), after, mutable_out(r), value_dim_);
  }
}

float SoftmaxState::finish(std::int64_t r, float natural_factor, float sink) {
  if (maximum_[r] == nothing) return sink;  // O is 0 already
  float maximum = maximum_[r] * natural_factor;
  float sum = sum_[r];
  if (sink != nothing) {
    const float with_sink = larger(maximum, sink);
    float factors[] = {maximum - with_sink, sink - with_sink};
    simd::exp(factors, factors, 2);
    sum = std::fma(sum, factors[0], factors[1]);
    simd::scale(mutable_out(r), factors[0], value_dim_);
    maximum = with_sink;
  }
  simd::divide(mutable_out(r), sum, value_dim_);
  float logarithm;
  simd::log(&sum, &logarithm, 1);
  return maximum + logarithm;
}

}  // namespace chorale::tiled
