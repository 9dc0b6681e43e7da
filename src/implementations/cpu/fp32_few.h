// The forward pass of float32 products for sequences of few rows: a decode.
#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

void fp32_few(const TiledPlan& plan, const ForwardTensors& tensors);

}  // namespace chorale::tiled
