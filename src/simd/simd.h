// Vector building blocks that attention and the model's layers share.
//
// Every function gives the same bits on every instruction set it is compiled for (AVX2 with FMA, AVX-512):
// sums and products are fused chains per element in a fixed order, and where a sum crosses lanes it uses
// sixteen partial sums and one tree, whatever the register width. None looks at how many rows it is given.
// All are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale::simd {

// Columns are padded to a multiple of this many floats; a partial sum's lane is index % lanes.
inline constexpr std::int64_t lanes = 16;
constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple = lanes) {
  return (n + multiple - 1) / multiple * multiple;
}

// ok if this processor can run the functions below; else the reason ("needs AVX2 and FMA; this processor has
// neither").
Status supported();
// "avx2" or "avx512": what runs here, at most what CHORALE_SIMD says.
std::string level();

// Conversions, exact upwards, rounded to nearest even downwards; float8_e4m3 saturates.
void to_float(const void* from, DType dtype, float* to, std::int64_t count);
void from_float(const float* from, DType dtype, void* to, std::int64_t count);

// out[i][j] (+)= sum over p ascending of a[i][p] * b[p][j], as one chain of fused multiply-adds per element
// that starts from 0, or from out[i][j] if `accumulate`.
//   a[i][p] = a[i * a_row + p * a_inner]      any strides
//   b[p][j] = b[p * b_row + j]                columns contiguous; readable up to round_up(columns)
//   out[i][j] = out[i * out_row + j]          columns contiguous; written up to round_up(columns)
struct ProductShape {
  std::int64_t rows, columns, inner;
};
struct Operand {
  const float* data;
  std::int64_t row, inner = 1;
};
void multiply(const ProductShape& shape, const Operand& a, const float* b, std::int64_t b_row, float* out,
              std::int64_t out_row, bool accumulate);
// The same, leaving out the products whose visible[i * a.row + p * a.inner] is 0 (laid out as `a` is): they
// touch nothing, whatever a and b hold.
void multiply_visible(const ProductShape& shape, const Operand& a, const float* b, std::int64_t b_row,
                      const std::uint8_t* visible, float* out, std::int64_t out_row, bool accumulate);

// out[j][i] = in[i][j] for rows x columns.
void transpose(const float* in, std::int64_t in_row, std::int64_t rows, std::int64_t columns, float* out,
               std::int64_t out_row);

// Sum by sixteen partial sums (element i goes to i % 16, in ascending order) folded as a tree 8, 4, 2, 1.
float sum(const float* x, std::int64_t count);
float dot(const float* x, const float* y, std::int64_t count);  // each product fused into its partial sum
float max(const float* x, std::int64_t count);                  // -inf if count is 0
// Over a vocabulary, e[j] = exp(x[j] / temperature - largest): their sum, in the order of sum(), and
// y[j] = factor * (0 - e[j] / sum). y may be x.
float sum_exp(const float* x, std::int64_t count, float temperature, float largest);
void softmax_gradient(const float* x, std::int64_t count, float temperature, float largest, float sum,
                      float factor, float* y);

// Elementwise, in place or not. Accuracy in units in the last place is measured in tests/simd.
void exp(const float* x, float* y, std::int64_t count);
void tanh(const float* x, float* y, std::int64_t count);
void log(const float* x, float* y, std::int64_t count);
// 2^x for x <= 0 (or little above it), as softmax_rows computes it: 0 below -126.
void exp2_nonpositive(const float* x, float* y, std::int64_t count);
// A step of the online softmax of some rows: maximum = max(before, x), p = exp2_nonpositive((x - maximum) *
// factor) with each step rounded (so that p is exactly 1 at the maximum), and the sum of p in the order of
// sum(). Where the maximum is -inf, p and the sum are 0. NaN in x gives a NaN sum. p replaces x.
struct RowSoftmax {
  float maximum, sum;
};
void softmax_rows(float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count, const float* before,
                  float factor, RowSoftmax* to);
// p rounded to bfloat16 after it was added to the sum; zeros follow up to a multiple of 32.
void softmax_rows(const float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count,
                  const float* before, float factor, RowSoftmax* to, bfloat16* p, std::int64_t p_row);
// One row's step of the backward pass, in place: p = exp2_nonpositive(fma(x, factor, -offset)) replaces the
// score x, and p * (gradient - delta) the gradient of p.
void softmax_row_backward(float* x, float* gradient, std::int64_t count, float factor, float offset,
                          float delta);
void scale(float* x, float factor, std::int64_t count);                      // x *= factor
void divide(float* x, float divisor, std::int64_t count);                    // x /= divisor
void scale_add(const float* x, float factor, float* y, std::int64_t count);  // y = fma(x, factor, y)

}  // namespace chorale::simd
