// 8-bit keys and values: what is stored for an element, and what a stored code stands for.
//
//     code  = float8_e4m3(float(x) / scale)          division rounded to float32, then to the nearest code;
//     saturating value = dtype(float(code) * scale)             product rounded to float32, then to the type
//     of computation
//
// with a scale for each KV head. Whoever computes on these values, from pages of codes or from packed rows of
// values, computes on the same bits.
#pragma once

#include <span>
#include <string_view>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// A scale that can be divided by: finite and above 0.
Status check_kv_scale(std::string_view name, std::int64_t index, float scale);

// One token: [heads, dim] without gaps, in a type of computation.
void quantise_token(const void* from, DType dtype, std::span<const float> scales, std::int64_t dim,
                    float8_e4m3* to);

// Rows [tokens, heads, dim] of any strides to codes, and codes to rows of `dtype`. One valid scale for each
// head.
Tensor quantise(const TensorView& rows, std::span<const float> scales);
Tensor dequantise(const TensorView& codes, std::span<const float> scales, DType dtype);
// Rows as a float8 cache gives them back.
inline Tensor quantise_dequantise(const TensorView& rows, std::span<const float> scales) {
  return dequantise(quantise(rows, scales), scales, rows.dtype);
}

}  // namespace chorale
