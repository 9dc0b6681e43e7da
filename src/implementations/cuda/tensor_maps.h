// How kernels find their way in a tensor: rows by strides, and boxes of q, k and v by the maps that the GPU's
// copy engine reads.
#pragma once

#include "chorale/tensor.h"
#include "implementations/cuda/driver.h"
#include "kernels/params.h"

namespace chorale::cuda {

inline kernels::Rows rows_of(const TensorView& view) {  // [..., tokens, heads, dim]
  return {view.data, view.stride[view.rank - 3], view.stride[view.rank - 2]};
}

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
