// A step that AMX, AVX-512 and the packing of tiles share. For functions whose instruction sets include
// AVX-512F.
#pragma once

#include "simd/instruction_sets.h"

namespace chorale::simd {

// 16 x 16 transposition of 32-bit elements: by pairs, fours, then 128-bit lanes.
CHORALE_AVX512 __attribute__((always_inline)) inline void transpose_16x16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int j = 0; j < 4; ++j) {
    const __m512i low_01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88),
                  high_01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i low_23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88),
                  high_23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(low_01, low_23, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(low_01, low_23, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(high_01, high_23, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(high_01, high_23, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

}  // namespace chorale::simd
