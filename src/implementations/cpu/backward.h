#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// Tensors have been checked. Cannot fail.
void backward(const TiledPlan& plan, const BackwardTensors& tensors);

}  // namespace chorale::tiled
