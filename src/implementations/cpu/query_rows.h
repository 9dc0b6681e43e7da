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

// Where rows [first, first + most) of a sequence under one KV head lie in a bfloat16 tensor, as far as there
// are any: how many. Gathered in `scratch` [most, dim] if their elements are not contiguous.
std::int64_t locate_rows(const TiledPlan& plan, const TensorView& tensor, int sequence, int kv_head,
                         std::int64_t first, std::int64_t most, const bfloat16** rows, bfloat16* scratch);

}  // namespace chorale::tiled
