// flash_attention_3: Hopper kernels, compiled for the problem. docs/cuda.md
#pragma once

#include "chorale/implementation.h"

namespace chorale {

const Implementation& cuda_attention();

namespace cuda {
// Whether the kernels can compute a problem, whatever the machine.
Status supports_problem(const Problem& problem);
}  // namespace cuda

}  // namespace chorale
