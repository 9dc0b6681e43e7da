// What an implementation may assume of a TensorView that a caller passed, checked once here.
//
// Inputs may have any non-negative strides, 0 included. Outputs have a contiguous last dimension, and no two
// of their elements lie in the same place. The data of both is aligned to its element type; nothing more is
// asked of it.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

enum class Access { read, write };

struct NamedView {
  std::string_view name;  // as the caller knows it: "grad_k"
  const TensorView* view;
  Access access;
  DType dtype;                      // what it must be
  std::vector<std::int64_t> shape;  // what it must be; any_extent where only the caller knows
};
inline constexpr std::int64_t any_extent = -1;

// Type, shape, strides and alignment of one view.
Status check_view(const NamedView& tensor);
// No output shares memory with another tensor. Interleaved rows (q, k and v as column ranges of one matrix)
// are told apart; stranger arrangements are refused if their ranges of addresses meet.
Status check_disjoint(std::span<const NamedView> tensors);

}  // namespace chorale
