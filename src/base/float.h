// Conversions between float32 and the narrow storage types, one value at a time. src/simd has the vector
// forms, which give the same bits. Rounding is to nearest, ties to even; NaN stays NaN. float8_e4m3 has no
// infinity: what is beyond its largest value becomes that (saturates).
#pragma once

#include <bit>
#include <cstdint>

#include "chorale/tensor.h"

namespace chorale {

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
float to_float(float16 x);
float to_float(float8_e4m3 x);

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};  // quiet NaN
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
float16 from_float<float16>(float x);
template <>
float8_e4m3 from_float<float8_e4m3>(float x);

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::float32;
}
template <>
constexpr DType dtype_of<bfloat16>() {
  return DType::bfloat16;
}
template <>
constexpr DType dtype_of<float16>() {
  return DType::float16;
}
template <>
constexpr DType dtype_of<float8_e4m3>() {
  return DType::float8_e4m3;
}

// Calls f with a value of the storage type: visit_dtype(dtype, [&](auto zero) { using T = decltype(zero); ...
// }).
template <class F>
decltype(auto) visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bfloat16:
      return f(bfloat16{});
    case DType::float16:
      return f(float16{});
    case DType::float8_e4m3:
      return f(float8_e4m3{});
    case DType::float32:
      break;
  }
  return f(float{});
}

// x as the type would hold it.
inline float round_to(DType dtype, float x) {
  return visit_dtype(dtype, [&](auto zero) { return to_float(from_float<decltype(zero)>(x)); });
}

// Element `offset` (counted in elements) of memory of a type.
inline float load_element(const void* data, DType dtype, std::int64_t offset) {
  return visit_dtype(dtype,
                     [&](auto zero) { return to_float(static_cast<const decltype(zero)*>(data)[offset]); });
}
inline void store_element(void* data, DType dtype, std::int64_t offset, float value) {
  visit_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    static_cast<T*>(data)[offset] = from_float<T>(value);
  });
}

}  // namespace chorale
