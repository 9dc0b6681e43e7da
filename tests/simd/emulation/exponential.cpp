#include "product.h"

// Another namespace, so that a program can have both.
#define tiled emulated_tiled
#include "exponential-inl.h"

namespace chorale::emulated_simd {

void exponential(const float* x, float* power, bfloat16* rounded) {
  emulated_tiled::amx::exponential(x, power, rounded);
}

}  // namespace chorale::emulated_simd
