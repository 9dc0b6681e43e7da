#include "implementations/cpu/softmax_state.h"

#include <algorithm>
#include <cmath>

namespace chorale::tiled {
namespace {

// The larger of two; NaN stays, so that a broken score is seen in the output.
float larger(float x, float y) { return y > x || std::isnan(y) ? y : x; }

// What a state under maximum `from` is multiplied by under maximum `to`, as an exponent of 2: exactly 0 where
// they are equal, -inf included.
float rescale_exponent(float from, float to, float log2_factor) {
  return from == to ? 0.0f : (from - to) * log2_factor;
}

}  // namespace

SoftmaxState::SoftmaxState(std::int64_t most_rows, std::int64_t value_dim)
    : value_dim_(value_dim),
      value_row_(simd::round_up(value_dim)),
      maximum_(static_cast<std::size_t>(most_rows)),
      sum_(static_cast<std::size_t>(most_rows)),
      tile_sums_(static_cast<std::size_t>(most_rows)),
      factors_(static_cast<std::size_t>(most_rows)),
      out_(static_cast<std::size_t>(simd::round_up(most_rows) * value_row_)) {
}  // engines write whole groups of rows

void SoftmaxState::reset(std::int64_t rows) {
  rows_ = rows;
  std::fill_n(maximum_.begin(), rows, nothing);
  std::fill_n(sum_.begin(), rows, 0.0f);
  std::fill(out_.begin(), out_.end(), 0.0f);
}

void SoftmaxState::rescale(std::int64_t first, std::span<const float> maxima, float log2_factor,
                           bool rescale_out) {
  float* factors = factors_.data();
  for (std::size_t i = 0; i < maxima.size(); ++i)
    factors[i] = rescale_exponent(maximum_[first + i], maxima[i], log2_factor);
  simd::exp2_nonpositive(factors, factors, static_cast<std::int64_t>(maxima.size()));
  for (std::size_t i = 0; i < maxima.size(); ++i) {
    const std::int64_t r = first + static_cast<std::int64_t>(i);
    if (maxima[i] == maximum_[r]) continue;
    maximum_[r] = maxima[i];
    sum_[r] *= factors[i];
    if (rescale_out) simd::scale(out(r), factors[i], value_dim_);
  }
}

void SoftmaxState::merge(const SoftmaxState& later, float log2_factor) {
  for (std::int64_t r = 0; r < rows_; ++r) {
    if (later.empty(r)) continue;
    if (empty(r)) {
      maximum_[r] = later.maximum_[r];
      sum_[r] = later.sum_[r];
      std::copy_n(later.out(r), value_dim_, out(r));
      continue;
    }
    const float maximum = larger(maximum_[r], later.maximum_[r]);
    float factors[] = {rescale_exponent(maximum_[r], maximum, log2_factor),
                       rescale_exponent(later.maximum_[r], maximum, log2_factor)};
    simd::exp2_nonpositive(factors, factors, 2);
    maximum_[r] = maximum;
    sum_[r] = std::fma(later.sum_[r], factors[1], sum_[r] * factors[0]);
    simd::scale(out(r), factors[0], value_dim_);
    simd::scale_add(later.out(r), factors[1], out(r), value_dim_);
  }
}

}  // namespace chorale::tiled
