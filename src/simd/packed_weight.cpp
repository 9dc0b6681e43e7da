#include <algorithm>

#include "base/float.h"
#include "base/threads.h"
#include "simd/simd.h"

namespace chorale::simd {
namespace {

// panel[inner][16] for each group of 16 columns, from an element at (column, inner) with the given strides.
void fill_panels(const TensorView& weight, std::int64_t columns, std::int64_t inner,
                 std::int64_t column_stride, std::int64_t inner_stride, float* panels) {
  for (std::int64_t column = 0; column < columns; ++column) {
    float* panel = panels + column / lanes * inner * lanes + column % lanes;
    for (std::int64_t i = 0; i < inner; ++i)
      panel[i * lanes] = load_element(weight.data, weight.dtype, column * column_stride + i * inner_stride);
  }
}

}  // namespace

PackedWeight PackedWeight::pack(const TensorView& weight) {
  PackedWeight packed;
  packed.columns_ = weight.shape[0];
  packed.inner_ = weight.shape[1];
  packed.data_.assign(static_cast<std::size_t>(packed.panels() * packed.inner_ * lanes), 0.0f);
  fill_panels(weight, packed.columns_, packed.inner_, weight.stride[0], weight.stride[1],
              packed.data_.data());
  return packed;
}

PackedWeight PackedWeight::pack_transposed(const TensorView& weight) {
  TensorView transposed = weight;
  std::swap(transposed.shape[0], transposed.shape[1]);
  std::swap(transposed.stride[0], transposed.stride[1]);
  return pack(transposed);
}

}  // namespace chorale::simd
