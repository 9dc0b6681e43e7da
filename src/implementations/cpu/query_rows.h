// The other loader: rows of a query block (of q, out or grad_out) from the packed tensors.
#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// As float32, out_row floats apart.
void load_block(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, float* out,
                std::int64_t out_row);
// As they are stored, for 16-bit tensors; out_row elements apart.
void load_block(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, bfloat16* out,
                std::int64_t out_row);

}  // namespace chorale::tiled
