// The exponentials of the AMX kernels on 16 numbers. Included twice: with the processor's instructions, and
// with the emulated ones under another namespace's name.
#pragma once

#include "chorale/tensor.h"
#include "implementations/cpu/amx_vectors.h"

namespace chorale::tiled::amx {

// 2^x of each, and that rounded, twice side by side.
CHORALE_AMX inline void exponential(const float* x, float* power, bfloat16* rounded) {
  __m512 value[1] = {_mm512_loadu_ps(x)};
  Exponential().apply(value);
  _mm512_storeu_ps(power, value[0]);
  _mm512_storeu_si512(rounded, pairs_of_probabilities(value[0], value[0]));
}

}  // namespace chorale::tiled::amx
