// Weights laid out for the products of a model's linear layers, and these products.
//
// In float32, and for bfloat16 weights on processors without products of bfloat16 pairs, each element is one
// chain of fused multiply-adds over the inner index, ascending. Where there is AMX or AVX-512 BF16, bfloat16
// products use it (simd/dot_tiles.h): the left operand is rounded to bfloat16, and an element is one chain of
// that instruction's steps, ascending. Either way a row's bits depend on the row and the weight alone.
#pragma once

#include <cstdint>
#include <span>

#include "chorale/tensor.h"

namespace chorale::simd {

// A [columns, inner] weight (rows are outputs, as in a linear layer).
//   float32    panels of 16 columns: [inner][16]
//   bfloat16   panels of 32 columns in pairs of inner values: [inner / 2][32][2], inner padded to 32
// Zero-padded. The product of rows with a panel streams through memory once.
class PackedWeight {
 public:
  PackedWeight() = default;
  // `weight` [columns, inner], any strides and type, rounded to `type`. Takes the place of what was packed,
  // in the same memory if shape and type stay. 0 threads: all.
  void pack(const TensorView& weight, DType type, int threads = 1);
  // What `packed` holds, with columns and inner in each other's place: for gradients of inputs.
  void pack_transposed(const PackedWeight& packed, int threads = 1);

  std::int64_t columns() const { return columns_; }
  std::int64_t inner() const { return inner_; }
  DType type() const { return data_.dtype(); }
  bool empty() const { return columns_ == 0; }

  std::int64_t panel_columns() const { return type() == DType::float32 ? 16 : 32; }
  std::int64_t panels() const { return (columns_ + panel_columns() - 1) / panel_columns(); }
  const float* floats(std::int64_t panel) const;    // of a float32 weight
  const bfloat16* pairs(std::int64_t panel) const;  // of a bfloat16 weight

 private:
  void resize(std::int64_t columns, std::int64_t inner, DType type);
  std::int64_t panel_elements() const;
  std::int64_t columns_ = 0, inner_ = 0;
  Tensor data_;
};

// out[rows, columns] = a[rows, inner] * weight^T, rounded to `rounding`. Columns of `out` are written up to
// the next multiple of 16. Several products of the same rows are handed to threads together.
struct WeightProduct {
  const PackedWeight* weight;
  float* out;
  std::int64_t out_row;
};
void multiply(const float* a, std::int64_t a_row, std::int64_t rows, std::span<const WeightProduct> products,
              DType rounding, int threads);

// A matrix of float32 rows.
struct Rows {
  const float* data;
  std::int64_t row;  // floats from one row to the next
  std::int64_t columns;
};
// sums[i][j] += sum over rows of a[row][i] * b[row][j], ascending: what a linear layer's weight gradient is.
// Chains go on from what `sums` [a.columns, b.columns] holds. With `type` bfloat16 and products of pairs,
// both operands are rounded and rows are taken in steps of 32, counted from the first of this call.
void add_transposed_product(const Rows& a, const Rows& b, std::int64_t rows, DType type, float* sums,
                            std::int64_t sums_row, int threads);

}  // namespace chorale::simd
