// Right-hand operands of float32 products as panels: sixteen columns together, inner values contiguous, so
// that a panel stays in the first-level cache while many rows go past (simd/product.h, b_row = 16).
#pragma once

#include <algorithm>
#include <cstdint>

#include "implementations/cpu/mutants.h"
#include "simd/simd.h"

namespace chorale::tiled {

// panels[column / 16][row][column % 16] = in[row][column]; `inner` rows of room a panel, zeros past `count`.
inline void pack_panels(const float* in, std::int64_t in_row, std::int64_t count, std::int64_t columns,
                        std::int64_t inner, float* panels) {
  for (std::int64_t column = 0; column < columns; column += simd::lanes, panels += inner * simd::lanes) {
    for (std::int64_t r = 0; r < count; ++r)
      std::copy_n(in + r * in_row + column, simd::lanes, panels + r * simd::lanes);
    std::fill(panels + count * simd::lanes, panels + inner * simd::lanes, 0.0f);
  }
}

// panels[row / 16][column][row % 16] = in[row][column]: rows become columns.
inline void pack_panels_transposed(const float* in, std::int64_t in_row, std::int64_t count,
                                   std::int64_t columns, float* panels) {
  for (std::int64_t r = 0; r < count; r += simd::lanes, panels += columns * simd::lanes)
    simd::transpose(in + r * in_row, in_row, std::min(simd::lanes, count - r), columns, panels, simd::lanes);
}

}  // namespace chorale::tiled
