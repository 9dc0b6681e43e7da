// Tensor maps: how the GPU's copy engine finds boxes of q, k and v.
#pragma once

#include "chorale/tensor.h"
#include "implementations/cuda/driver.h"
#include "kernels/params.h"

namespace chorale::cuda {

// A map of a tensor whose last dimension is contiguous, first dimension first: `box` has the view's
// dimensions from the last to the first. Boxes are 128 bytes wide. The view's address and its strides but the
// last must be multiples of 16 bytes.
Result<kernels::TensorMap> tensor_map(const Driver& driver, std::string_view name, const TensorView& view,
                                      std::span<const int> box);

// A map of pages [pages, slots, heads, columns] for boxes of several blocks of 64 columns side by side:
// dimensions 64 columns, slots, blocks, heads, pages; box 64, `slots`, `blocks`, 1, 1.
Result<kernels::TensorMap> column_blocks_map(const Driver& driver, std::string_view name,
                                             const TensorView& pages, int slots, int blocks);

// ok, or which stride or address of a tensor the copy engine cannot take.
Status check_alignment(std::string_view name, const TensorView& view);

}  // namespace chorale::cuda
