// The arguments of the matrix product, shared by its callers (simd.cpp) and its kernels (product-inl.h).
#pragma once

#include <cstddef>

#include "chorale/tensor.h"
#include "simd/simd.h"

namespace chorale::simd {

struct ProductArguments {
  ProductShape shape;
  Operand a;
  const float* b;
  std::int64_t b_row;  // from one value of the inner index to the next
  std::int64_t
      b_group;  // from one group of 16 columns to the next: 16 for plain rows, a panel's size for packed ones
  float* out;
  std::int64_t out_row;
  bool accumulate;
  // Memory that will be read soon, to ask for while computing.
  const float* ahead = nullptr;
  std::int64_t ahead_floats = 0;
};

void product(const ProductArguments& arguments);  // on this processor's level
// The same, leaving out the products whose visible[i * a.row + p * a.inner] is 0 (laid out as `a` is).
void product_visible(const ProductArguments& arguments, const std::uint8_t* visible);

// Products of up to few rows with rows that are read where they lie, each once (for up to 8 rows, or 4 with
// AVX2). Bits are those of product().
struct RowsArguments {
  std::int64_t rows;  // of a and out
  const float* a;
  std::int64_t a_row;
  const std::byte* const* b;  // b[j] points at `columns` values, for j < b_rows
  DType b_dtype;              // of them: not of 8 bits
  std::int64_t b_rows, columns;
  float* out;
  std::int64_t out_row;
};
// out[i][j] = sum over c ascending of a[i][c] * b[j][c], from 0. b is read up to round_up(b_rows), and out
// written.
void product_rows_transposed(const RowsArguments& arguments);
// out[i][c] += sum over j ascending of a[i][j] * b[j][c], going on from out. out is written up to
// round_up(columns).
void product_rows(const RowsArguments& arguments);

// One panel of a bfloat16 weight: out[i][j] = sum over p of a[i][p] * panel[p / 2][j][p % 2], widened to
// float32 and summed as a chain of fused multiply-adds.
struct PairArguments {
  std::int64_t rows, columns, inner;  // columns: 16 or 32
  const float* a;
  std::int64_t a_row;
  const bfloat16* panel;  // [inner / 2][32][2], inner to an even number
  float* out;
  std::int64_t out_row;
  bool accumulate;
};
void product_pairs(const PairArguments& arguments);
// to[i] = first[i] in the lower half, second[i] in the upper (or 0 if there is no second), rounded to
// bfloat16.
void narrow_pairs(const float* first, const float* second, std::int64_t count, std::uint32_t* to);
// Rounds rows x columns values to bfloat16, in place.
void round_rows(float* x, std::int64_t row, std::int64_t rows, std::int64_t columns);

}  // namespace chorale::simd
