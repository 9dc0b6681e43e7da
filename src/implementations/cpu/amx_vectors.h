// Vector steps that the AMX kernels share. Every function is inlined.
#pragma once

#include <cstdint>
#include <limits>

#include "simd/instruction_sets.h"

#define CHORALE_AMX_INLINE CHORALE_AMX __attribute__((always_inline)) inline

namespace chorale::tiled::amx {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// 2^x: exactly 1 for 0, 0 below -126, NaN for NaN. 2^r for r in [0, 1) is a polynomial with a relative error
// of 3e-6, against 2e-3 of the rounding to bfloat16 that follows. Few instructions: beside a tile product
// only one port is left for most of them. A subnormal result would cost two hundred cycles.
struct Exponential {
  __m512 one, c1, c2, c3, c4;

  CHORALE_AMX_INLINE Exponential()
      : one(_mm512_set1_ps(1)),
        c1(_mm512_set1_ps(0x1.62d6d0p-1f)),
        c2(_mm512_set1_ps(0x1.ee2374p-3f)),
        c3(_mm512_set1_ps(0x1.abfe7ep-5f)),
        c4(_mm512_set1_ps(0x1.b7ea5cp-7f)) {}

  // N vectors side by side, so that each step finds its operands ready.
  template <int N>
  CHORALE_AMX_INLINE void apply(__m512 (&x)[N]) const {
    constexpr int down = _MM_FROUND_TO_NEG_INF;
    __m512 r[N], p[N];
    __mmask16 normal[N];
    for (int i = 0; i < N; ++i) r[i] = _mm512_reduce_ps(x[i], down);  // x - floor(x)
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(c4, r[i], c3);
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], r[i], c2);
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], r[i], c1);
    for (int i = 0; i < N; ++i) p[i] = _mm512_fmadd_ps(p[i], r[i], one);
    for (int i = 0; i < N; ++i) normal[i] = _mm512_cmp_ps_mask(x[i], _mm512_set1_ps(-126), _CMP_NLT_UQ);
    for (int i = 0; i < N; ++i) x[i] = _mm512_maskz_scalef_ps(normal[i], p[i], x[i]);  // p 2^floor(x)
  }
};

// Two vectors rounded to bfloat16: 16 of `low`, then 16 of `high`. Subnormals become 0.
CHORALE_AMX_INLINE __m512i rounded(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
// Each lane's two side by side, and subnormals stay: as base/float.h rounds.
CHORALE_AMX_INLINE __m512i pairs_exactly(__m512 first, __m512 second) {
  alignas(64) static const std::uint16_t upper[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11,
                                                      43, 13, 45, 15, 47, 17, 49, 19, 51, 21, 53,
                                                      23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
  const auto nearest = [](__m512 value) CHORALE_AMX {
    const __m512i x = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, x, _mm512_set1_epi32(0x400000));
  };
  return _mm512_permutex2var_epi16(nearest(first), _mm512_load_si512(upper), nearest(second));
}
// The same, but subnormals become 0.
CHORALE_AMX_INLINE __m512i pairs(__m512 first, __m512 second) {
  alignas(64) static const std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rounded(first, second));
}
// Of probabilities: a tie goes up, and a NaN may become anything, which their sum tells. These steps are left
// to the port that a tile product does not hold, where those above all need the other.
CHORALE_AMX_INLINE __m512i pairs_of_probabilities(__m512 first, __m512 second) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(second), half);
  constexpr int low_or_upper_of_high = 0xf8;  // a | b & c
  return _mm512_ternarylogic_epi32(low, high, upper, low_or_upper_of_high);
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
