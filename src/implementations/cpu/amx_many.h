// The forward pass of bfloat16 problems on AMX (amx_kernels.h): sequences of many rows. Called by forward().
#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

void amx_many(const TiledPlan& plan, const ForwardTensors& tensors);

}  // namespace chorale::tiled
