// The emulated products and exponentials beside the processor's own in one program.
#pragma once

#include <cstdint>

#include "chorale/tensor.h"

namespace chorale::emulated_simd {

// out[rows][columns] += left[rows][inner] right[inner / 2][columns][2] as simd::dot_product, on AMX or
// AVX-512 BF16.
void multiply(bool amx, std::int64_t rows, std::int64_t columns, std::int64_t inner, const bfloat16* left,
              const bfloat16* right, float* out);

// exponential-inl.h.
void exponential(const float* x, float* power, bfloat16* rounded);

}  // namespace chorale::emulated_simd
