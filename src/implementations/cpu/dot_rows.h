// What both passes with bfloat16 products do where hidden pairs must be left out one by one (finite.h).
#pragma once

#include <cstdint>

#include "implementations/cpu/mutants.h"
#include "simd/dot_tiles.h"

namespace chorale::tiled {

// sums [columns] += row * right for one row of `count` elements (padded with zeros up to a multiple of 32),
// where right is packed [inner / 2, columns, 2], leaving out what `visible` (0 or 1 for each of the `count`)
// hides. Inside a simd::DotScope.
void add_row_without_hidden(simd::DotLevel level, const bfloat16* row, const bfloat16* right,
                            std::int64_t columns, const std::uint8_t* visible, std::int64_t count,
                            float* sums);

}  // namespace chorale::tiled
