// The arguments of the matrix product, shared by its callers (simd.cpp) and its kernels (product-inl.h).
#pragma once

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
};

}  // namespace chorale::simd
