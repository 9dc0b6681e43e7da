// Products of slabs that the mask hides in part and whose other operand holds infinities or NaN (finite.h): a
// row or key at a time, with what it does not see set to zero. `visible` as in Visibility: bit k of word r.
#pragma once

#include "implementations/cpu/amx_kernels.h"

namespace chorale::tiled::amx {

// As add_values of one slab.
void add_visible_values(const std::uint32_t* visible, const bfloat16* values, const bfloat16* p,
                        std::int64_t dim, float* out);
void add_visible_values_to_few(const std::uint32_t* visible, const bfloat16* values, const bfloat16* p,
                               std::int64_t dim, float* out);
// As add_over_queries of one strip.
void add_visible_over_queries(const std::uint32_t* visible, const bfloat16* left, const bfloat16* right,
                              std::int64_t dim, float* out);

}  // namespace chorale::tiled::amx
