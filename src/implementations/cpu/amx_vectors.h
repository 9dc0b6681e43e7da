// Vector steps that the AMX kernels share. Every function is inlined.
#pragma once

#include <cstdint>
#include <limits>

#include "simd/instruction_sets.h"

#define CHORALE_AMX_INLINE CHORALE_AMX __attribute__((always_inline)) inline

namespace chorale::tiled::amx {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// exp2(x * factor) for x <= 0, or little above: 0 below a product of -126, NaN for NaN, exactly 1 for 0.
// 2^f for f in [-1/2, 1/2] is a polynomial with a relative error of 3e-6, against 2e-3 of the rounding to
// bfloat16 that follows.
struct Exponential {
  __m512 factor, lowest, magic, one, c1, c2, c3, c4;

  CHORALE_AMX_INLINE explicit Exponential(float f)
      : factor(_mm512_set1_ps(f)),
        lowest(_mm512_set1_ps(-127.0f / f)),
        // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits; 127 more is the
        // exponent's bias.
        magic(_mm512_set1_ps(0x1.8p23f + 127.0f)),
        one(_mm512_set1_ps(1)),
        c1(_mm512_set1_ps(0x1.62e12cp-1f)),
        c2(_mm512_set1_ps(0x1.ec0378p-3f)),
        c3(_mm512_set1_ps(0x1.c9fc46p-5f)),
        c4(_mm512_set1_ps(0x1.3a02ccp-7f)) {}

  // N vectors side by side, so that each step finds its operands ready.
  template <int N>
  CHORALE_AMX_INLINE void apply(__m512 (&x)[N]) const {
    __m512 shifted[N];
    for (int i = 0; i < N; ++i) x[i] = _mm512_max_ps(lowest, x[i]);  // NaN stays
    for (int i = 0; i < N; ++i) shifted[i] = _mm512_fmadd_ps(x[i], factor, magic);
    for (int i = 0; i < N; ++i) x[i] = _mm512_fmsub_ps(x[i], factor, _mm512_sub_ps(shifted[i], magic));
    finish(x, shifted);
  }

  // exp2(x), the same way.
  template <int N>
  CHORALE_AMX_INLINE void apply_power(__m512 (&x)[N]) const {
    __m512 shifted[N];
    for (int i = 0; i < N; ++i) x[i] = _mm512_max_ps(_mm512_set1_ps(-127), x[i]);
    for (int i = 0; i < N; ++i) shifted[i] = _mm512_add_ps(x[i], magic);
    for (int i = 0; i < N; ++i) x[i] = _mm512_sub_ps(x[i], _mm512_sub_ps(shifted[i], magic));
    finish(x, shifted);
  }

 private:
  // 2^x times the power of two that `shifted` holds.
  template <int N>
  CHORALE_AMX_INLINE void finish(__m512 (&x)[N], const __m512 (&shifted)[N]) const {
    __m512 p[N];
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(c4, x[i], c3);
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], x[i], c2);
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], x[i], c1);
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], x[i], one);
    for (int i = 0; i < N; ++i)
      x[i] = _mm512_mul_ps(p[i], _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted[i]), 23)));
  }
};

// Two vectors rounded to bfloat16: 16 of `low`, then 16 of `high`. Subnormals become 0.
CHORALE_AMX_INLINE __m512i rounded(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
// The same of two vectors of float32 bits, but subnormals stay: as base/float.h rounds.
CHORALE_AMX_INLINE __m512i rounded_exactly(__m512i low, __m512i high) {
  alignas(64) static const std::uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const auto nearest = [](__m512i x) CHORALE_AMX {
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, x, _mm512_set1_epi32(0x400000));
  };
  return _mm512_permutex2var_epi16(nearest(low), _mm512_load_si512(upper), nearest(high));
}
// The same, each lane's two side by side.
CHORALE_AMX_INLINE __m512i pairs(__m512 first, __m512 second) {
  alignas(64) static const std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rounded(first, second));
}

// 32 elements of two rows as pairs (a[i], b[i]): the first 16, then the rest.
CHORALE_AMX_INLINE void interleave(__m512i a, __m512i b, __m512i& low, __m512i& high) {
  alignas(64) static const std::uint16_t first[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i order = _mm512_load_si512(first);
  low = _mm512_permutex2var_epi16(a, order, b);
  high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(order, _mm512_set1_epi16(16)), b);
}

}  // namespace chorale::tiled::amx
