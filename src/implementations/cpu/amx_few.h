// The forward pass of bfloat16 problems on AMX (amx_kernels.h): sequences of few rows, a decode. Called by
// forward().
#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

void amx_few(const TiledPlan& plan, const ForwardTensors& tensors);

}  // namespace chorale::tiled
