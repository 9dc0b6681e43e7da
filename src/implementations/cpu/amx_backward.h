// The backward pass of bfloat16 problems on AMX (amx_kernels.h). Called by backward().
#pragma once

#include <vector>

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// deltas: grad_out . out of every row, [total_q, query_heads].
void amx_backward(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas);

}  // namespace chorale::tiled
