// The levels of arithmetic by their names, which are CHORALE_SIMD's: avx2, avx512, avx512_bf16, amx, from the
// least to the best. Each can do what those before it can.
#pragma once

#include <string>

#include "chorale/status.h"

namespace chorale::simd {

// The best that this processor has; "none" if not even AVX2.
std::string processor_level();
// What runs here: the best that this processor and CHORALE_SIMD allow.
std::string running_level();
// An error if CHORALE_SIMD names a level that this processor lacks.
Status check_forced_level();

}  // namespace chorale::simd
