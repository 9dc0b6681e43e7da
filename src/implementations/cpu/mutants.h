// Kernels that are broken on purpose, to prove that the tests would notice.
//
// The library is compiled without them: `is_mutant` is then false at compile time. tests/implementations
// compiles the same sources once more with CHORALE_CPU_MUTANTS, in a namespace of their own.
#pragma once

#include "chorale/implementation.h"

namespace chorale {

enum class Mutant { none, drop_last_key, drop_page, skip_rescale, scale_1_01, swap_value_pages };

#ifdef CHORALE_CPU_MUTANTS
#define tiled tiled_mutants
const Implementation& cpu_attention_mutant(Mutant mutant);
#endif

// Inside the renamed namespace, so that a program with both builds has two functions and not one.
namespace tiled {
#ifdef CHORALE_CPU_MUTANTS
constexpr bool is_mutant(Mutant running, Mutant asked) { return running == asked; }
#else
constexpr bool is_mutant(Mutant, Mutant) { return false; }
#endif
}  // namespace tiled

}  // namespace chorale
