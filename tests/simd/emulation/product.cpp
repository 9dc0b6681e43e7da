#include "product.h"

// Another namespace, so that a program can have both.
#define simd emulated_simd
#include "../../../src/simd/dot_tiles.cpp"

namespace chorale::emulated_simd {

void multiply(bool amx, std::int64_t rows, std::int64_t columns, std::int64_t inner, const bfloat16* left,
              const bfloat16* right, float* out) {
  const DotLevel level = amx ? DotLevel::amx : DotLevel::avx512_bf16;
  const DotScope scope(level);
  dot_product(level, {rows, columns, inner}, left, inner, right, 2 * columns, out, columns, true);
}

}  // namespace chorale::emulated_simd
