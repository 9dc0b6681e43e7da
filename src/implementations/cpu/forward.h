#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// Tensors have been checked. Cannot fail.
void forward(const TiledPlan& plan, const ForwardTensors& tensors);

}  // namespace chorale::tiled
