// Values that hidden pairs would spoil.
//
// A hidden pair's probability is 0, which leaves a sum as it is if the other factor is finite (and 0 * NaN is
// NaN). So where a tile that the mask shows in part holds only finite values it is multiplied like any other;
// else hidden pairs are left out one by one. Both give the same bits.
#pragma once

#include <bit>
#include <cstdint>

#include "chorale/tensor.h"

namespace chorale::tiled {

inline bool all_finite(const bfloat16* x, std::int64_t count) {
  unsigned largest = 0;
  for (std::int64_t i = 0; i < count; ++i)
    largest = x[i].bits % 0x8000u > largest ? x[i].bits % 0x8000u : largest;
  return largest < 0x7f80;
}

inline bool all_finite(const float* x, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7f800000u;
}

}  // namespace chorale::tiled
