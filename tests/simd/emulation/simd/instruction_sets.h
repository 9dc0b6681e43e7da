// AVX-512 and AMX for any processor: what src/simd and the AMX kernels use of them, written as loops, so that
// those schedules and kernels run where no such processor is. The name and place are those of the file that
// this one stands in for.
//
// As a processor does, it stops the program at a misaligned address or at tiles whose shapes do not fit, and
// touches no memory behind a mask or beyond a tile's rows. Semantics: Intel's "Intrinsics Guide" and, for
// tdpbf16ps and vdpbf16ps, "Architecture Instruction Set Extensions": float32 fused multiply-adds to nearest
// even, subnormal inputs and results are zeros.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define CHORALE_AVX512
#define CHORALE_AVX512_BF16
#define CHORALE_AMX

// NOLINTBEGIN(bugprone-reserved-identifier): Intel's names
using __m512 = float __attribute__((vector_size(64)));
using __m512i = long long __attribute__((vector_size(64)));
using __m512bh = short __attribute__((vector_size(64)));
using __mmask16 = std::uint16_t;
using __mmask32 = std::uint32_t;

namespace emulated {

using Words = std::uint32_t __attribute__((vector_size(64)));
using Halves = std::uint16_t __attribute__((vector_size(64)));
using Quads = std::uint64_t __attribute__((vector_size(64)));

inline void require(bool right) {
  if (!right) std::abort();
}
template <class Vector>
Vector load(const void* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline const void* aligned(const void* place) {
  require(reinterpret_cast<std::uintptr_t>(place) % 64 == 0);
  return place;
}
inline void* aligned(void* place) { return const_cast<void*>(aligned(static_cast<const void*>(place))); }
// x(i) of each element.
template <class Vector, class Element>
Vector elements(Element x) {
  Vector out;
  for (unsigned i = 0; i < sizeof out / sizeof out[0]; ++i) out[i] = x(i);
  return out;
}
// Bit i is test(i).
template <class Mask, class Test>
Mask mask(Test test) {
  std::uint32_t bits = 0;
  for (unsigned i = 0; i < 8 * sizeof(Mask); ++i) bits |= static_cast<std::uint32_t>(test(i)) << i;
  return static_cast<Mask>(bits);
}

inline float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float flushed(float x) {
  const std::uint32_t bits = bits_of(x);
  return from_bits((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}
inline float of_bfloat16(std::uint16_t bits) { return flushed(from_bits(std::uint32_t{bits} << 16)); }
// vcvtne2ps2bf16's rounding.
inline std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = bits_of(flushed(x));
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float multiply_add(float x, float y, float sum) { return flushed(std::fma(x, y, flushed(sum))); }

}  // namespace emulated

// --- loads and stores ------------------------------------------------------------------------------------

inline __m512 _mm512_loadu_ps(const void* from) { return emulated::load<__m512>(from); }
inline __m512 _mm512_load_ps(const void* from) { return emulated::load<__m512>(emulated::aligned(from)); }
inline __m512i _mm512_loadu_si512(const void* from) { return emulated::load<__m512i>(from); }
inline __m512i _mm512_load_si512(const void* from) {
  return emulated::load<__m512i>(emulated::aligned(from));
}
inline __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* from) {
  emulated::Halves x{};
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1) x[i] = emulated::load<std::uint16_t>(static_cast<const char*>(from) + 2 * i);
  return (__m512i)x;
}
inline void _mm512_storeu_ps(void* to, __m512 x) { std::memcpy(to, &x, sizeof x); }
inline void _mm512_store_ps(void* to, __m512 x) { std::memcpy(emulated::aligned(to), &x, sizeof x); }
inline void _mm512_storeu_si512(void* to, __m512i x) { std::memcpy(to, &x, sizeof x); }
inline void _mm512_stream_si512(void* to, __m512i x) { std::memcpy(emulated::aligned(to), &x, sizeof x); }
inline void _mm512_store_si512(void* to, __m512i x) { std::memcpy(emulated::aligned(to), &x, sizeof x); }
inline void _mm512_mask_store_ps(void* to, __mmask16 mask, __m512 x) {
  emulated::aligned(to);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1)
      std::memcpy(static_cast<char*>(to) + 4 * i, reinterpret_cast<const char*>(&x) + 4 * i, 4);
}
inline void _mm512_mask_storeu_epi16(void* to, __mmask32 mask, __m512i x) {
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1)
      std::memcpy(static_cast<char*>(to) + 2 * i, reinterpret_cast<const char*>(&x) + 2 * i, 2);
}

// --- float32 ---------------------------------------------------------------------------------------------

inline __m512 _mm512_set1_ps(float x) {
  return emulated::elements<__m512>([&](unsigned) { return x; });
}
inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512 _mm512_add_ps(__m512 x, __m512 y) { return x + y; }
inline __m512 _mm512_sub_ps(__m512 x, __m512 y) { return x - y; }
inline __m512 _mm512_mul_ps(__m512 x, __m512 y) { return x * y; }
inline __m512 _mm512_div_ps(__m512 x, __m512 y) { return x / y; }
inline __m512 _mm512_fmadd_ps(__m512 x, __m512 y, __m512 z) {
  return emulated::elements<__m512>([&](unsigned i) { return std::fma(x[i], y[i], z[i]); });
}
inline __m512 _mm512_fmsub_ps(__m512 x, __m512 y, __m512 z) { return _mm512_fmadd_ps(x, y, -z); }
// The second where one is NaN, or both are zeros.
inline __m512 _mm512_max_ps(__m512 x, __m512 y) {
  return emulated::elements<__m512>([&](unsigned i) { return x[i] > y[i] ? x[i] : y[i]; });
}
inline __m512 _mm512_mask_mov_ps(__m512 otherwise, __mmask16 mask, __m512 x) {
  return emulated::elements<__m512>([&](unsigned i) { return mask >> i & 1 ? x[i] : otherwise[i]; });
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) { return _mm512_mask_mov_ps(__m512{}, mask, x); }
inline __m512 _mm512_maskz_sub_ps(__mmask16 mask, __m512 x, __m512 y) {
  return _mm512_maskz_mov_ps(mask, x - y);
}
// x less the integer below it, rounded down.
constexpr int _MM_FROUND_TO_NEG_INF = 1;
inline __m512 _mm512_reduce_ps(__m512 x, int rounding) {
  emulated::require(rounding == _MM_FROUND_TO_NEG_INF);
  return emulated::elements<__m512>([&](unsigned i) {
    if (std::isinf(x[i])) return 0.0f;
    const double below = std::floor(x[i]);
    const auto rest = static_cast<float>(x[i] - below);
    return rest + below > x[i] ? std::nextafter(rest, 0.0f) : rest;
  });
}
// x 2^floor(y).
inline __m512 _mm512_maskz_scalef_ps(__mmask16 mask, __m512 x, __m512 y) {
  return emulated::elements<__m512>([&](unsigned i) {
    if ((mask >> i & 1) == 0) return 0.0f;
    if (std::isnan(y[i])) return y[i];
    return std::ldexp(x[i], static_cast<int>(std::clamp(std::floor(y[i]), -1000.0f, 1000.0f)));
  });
}
enum { _CMP_EQ_OQ, _CMP_NEQ_UQ, _CMP_GT_OQ, _CMP_NLT_UQ, _CMP_UNORD_Q };
inline __mmask16 _mm512_cmp_ps_mask(__m512 x, __m512 y, int comparison) {
  return emulated::mask<__mmask16>([&](unsigned i) {
    switch (comparison) {
      case _CMP_EQ_OQ:
        return x[i] == y[i];
      case _CMP_NEQ_UQ:
        return x[i] != y[i];
      case _CMP_GT_OQ:
        return x[i] > y[i];
      case _CMP_NLT_UQ:
        return !(x[i] < y[i]);
      default:
        return x[i] != x[i] || y[i] != y[i];
    }
  });
}
inline __m512i _mm512_castps_si512(__m512 x) { return (__m512i)x; }
inline __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }

// --- integers --------------------------------------------------------------------------------------------

inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512i _mm512_set1_epi32(int x) {
  return (__m512i)emulated::elements<emulated::Words>(
      [&](unsigned) { return static_cast<std::uint32_t>(x); });
}
inline __m512i _mm512_set1_epi16(short x) {
  return (__m512i)emulated::elements<emulated::Halves>(
      [&](unsigned) { return static_cast<std::uint16_t>(x); });
}
inline __m512i _mm512_and_si512(__m512i x, __m512i y) { return x & y; }
inline __m512i _mm512_add_epi32(__m512i x, __m512i y) {
  return (__m512i)((emulated::Words)x + (emulated::Words)y);
}
inline __m512i _mm512_add_epi16(__m512i x, __m512i y) {
  return (__m512i)((emulated::Halves)x + (emulated::Halves)y);
}
inline __m512i _mm512_slli_epi32(__m512i x, unsigned count) { return (__m512i)((emulated::Words)x << count); }
inline __m512i _mm512_srli_epi32(__m512i x, unsigned count) { return (__m512i)((emulated::Words)x >> count); }
inline __m512i _mm512_mask_or_epi32(__m512i otherwise, __mmask16 mask, __m512i x, __m512i y) {
  const auto both = (emulated::Words)(x | y), other = (emulated::Words)otherwise;
  return (__m512i)emulated::elements<emulated::Words>(
      [&](unsigned i) { return mask >> i & 1 ? both[i] : other[i]; });
}
// Of each bit: bit (x y z) of `table`.
inline __m512i _mm512_ternarylogic_epi32(__m512i x, __m512i y, __m512i z, int table) {
  __m512i out{};
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) out |= ((i & 4) != 0 ? x : ~x) & ((i & 2) != 0 ? y : ~y) & ((i & 1) != 0 ? z : ~z);
  return out;
}
inline __mmask16 _mm512_test_epi32_mask(__m512i x, __m512i y) {
  const auto both = (emulated::Words)(x & y);
  return emulated::mask<__mmask16>([&](unsigned i) { return both[i] != 0; });
}
inline __mmask16 _mm512_testn_epi32_mask(__m512i x, __m512i y) {
  return static_cast<__mmask16>(~_mm512_test_epi32_mask(x, y));
}
inline __mmask32 _mm512_cmpge_epu16_mask(__m512i x, __m512i y) {
  const auto a = (emulated::Halves)x, b = (emulated::Halves)y;
  return emulated::mask<__mmask32>([&](unsigned i) { return a[i] >= b[i]; });
}
inline __m512i _mm512_permutex2var_epi16(__m512i x, __m512i order, __m512i y) {
  const auto a = (emulated::Halves)x, b = (emulated::Halves)y, of = (emulated::Halves)order;
  return (__m512i)emulated::elements<emulated::Halves>(
      [&](unsigned i) { return (of[i] & 32) != 0 ? b[of[i] % 32] : a[of[i] % 32]; });
}
inline __m512i _mm512_permutexvar_epi16(__m512i order, __m512i x) {
  return _mm512_permutex2var_epi16(x, order, x);
}
// Of each 128 bits the elements from `first` on, x's and y's in turns.
template <class Vector>
__m512i emulated_unpack(__m512i x, __m512i y, unsigned first) {
  const auto a = (Vector)x, b = (Vector)y;
  constexpr unsigned lane = 16 / sizeof a[0];
  return (__m512i)emulated::elements<Vector>([&](unsigned i) {
    const unsigned from = i / lane * lane + first + i % lane / 2;
    return i % 2 == 0 ? a[from] : b[from];
  });
}
inline __m512i _mm512_unpacklo_epi32(__m512i x, __m512i y) {
  return emulated_unpack<emulated::Words>(x, y, 0);
}
inline __m512i _mm512_unpackhi_epi32(__m512i x, __m512i y) {
  return emulated_unpack<emulated::Words>(x, y, 2);
}
inline __m512i _mm512_unpacklo_epi64(__m512i x, __m512i y) {
  return emulated_unpack<emulated::Quads>(x, y, 0);
}
inline __m512i _mm512_unpackhi_epi64(__m512i x, __m512i y) {
  return emulated_unpack<emulated::Quads>(x, y, 1);
}
// Four times 128 bits: two of x, two of y.
inline __m512i _mm512_shuffle_i32x4(__m512i x, __m512i y, unsigned order) {
  const auto a = (emulated::Quads)x, b = (emulated::Quads)y;
  return (__m512i)emulated::elements<emulated::Quads>([&](unsigned i) {
    const unsigned from = 2 * (order >> i / 2 * 2 & 3) + i % 2;
    return i < 4 ? a[from] : b[from];
  });
}

// --- bfloat16 --------------------------------------------------------------------------------------------

inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  return (__m512bh)emulated::elements<emulated::Halves>(
      [&](unsigned i) { return emulated::to_bfloat16(i < 16 ? low[i] : high[i - 16]); });
}
inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh x, __m512bh y) {
  const auto a = (emulated::Halves)x, b = (emulated::Halves)y;
  const auto product = [&](float sum, unsigned i) {
    return emulated::multiply_add(emulated::of_bfloat16(a[i]), emulated::of_bfloat16(b[i]), sum);
  };
  return emulated::elements<__m512>([&](unsigned i) { return product(product(sums[i], 2 * i + 1), 2 * i); });
}

// --- AMX -------------------------------------------------------------------------------------------------

namespace emulated {

struct TileRegister {
  int rows = 0, bytes = 0;  // of a row
  std::uint32_t word[16][16];
};
struct Tiles {
  bool configured = false;
  TileRegister tile[8];
};
inline thread_local Tiles tiles;

inline TileRegister& tile(int number) {
  require(tiles.configured);
  return tiles.tile[number];
}
inline void clear(TileRegister& tile) { std::memset(tile.word, 0, sizeof tile.word); }

}  // namespace emulated

inline void _tile_loadconfig(const void* config) {
  const auto* bytes = static_cast<const unsigned char*>(config);
  emulated::require(bytes[0] == 1);
  emulated::tiles.configured = true;
  for (int i = 0; i < 8; ++i) {
    emulated::TileRegister& tile = emulated::tile(i);
    tile.bytes = emulated::load<std::uint16_t>(bytes + 16 + 2 * i);
    tile.rows = bytes[48 + i];
    emulated::require(tile.bytes <= 64 && tile.rows <= 16 && (tile.bytes == 0) == (tile.rows == 0));
    emulated::clear(tile);
  }
}
inline void _tile_release() { emulated::tiles.configured = false; }
inline void _tile_zero(int to) { emulated::clear(emulated::tile(to)); }
inline void _tile_loadd(int to, const void* from, std::int64_t stride) {
  emulated::TileRegister& tile = emulated::tile(to);
  emulated::clear(tile);
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(tile.word[row], static_cast<const char*>(from) + row * stride,
                static_cast<std::size_t>(tile.bytes));
}
inline void _tile_stored(int from, void* to, std::int64_t stride) {
  const emulated::TileRegister& tile = emulated::tile(from);
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tile.word[row], static_cast<std::size_t>(tile.bytes));
}
// Even and odd inner values are summed apart, then added to each other, then to what was there.
inline void _tile_dpbf16ps(int to, int left, int right) {
  emulated::TileRegister& out = emulated::tile(to);
  const emulated::TileRegister &a = emulated::tile(left), &b = emulated::tile(right);
  emulated::require(a.rows == out.rows && b.rows == a.bytes / 4 && b.bytes == out.bytes);
  float of_b[2][16][16];
  for (int pair = 0; pair < b.rows; ++pair)
    for (int column = 0; column < 16; ++column)
      for (int i = 0; i < 2; ++i)
        of_b[i][pair][column] =
            emulated::of_bfloat16(static_cast<std::uint16_t>(b.word[pair][column] >> 16 * i));
  for (int row = 0; row < out.rows; ++row) {
    float sums[2][16] = {};
    for (int pair = 0; pair < b.rows; ++pair)
      for (int i = 0; i < 2; ++i) {
        const float x = emulated::of_bfloat16(static_cast<std::uint16_t>(a.word[row][pair] >> 16 * i));
        for (int column = 0; column < 16; ++column)
          sums[i][column] = emulated::multiply_add(x, of_b[i][pair][column], sums[i][column]);
      }
    for (int column = 0; column < out.bytes / 4; ++column) {
      const float sum = emulated::flushed(sums[0][column] + sums[1][column]);
      out.word[row][column] = emulated::bits_of(
          emulated::flushed(emulated::flushed(emulated::from_bits(out.word[row][column])) + sum));
    }
  }
}
// NOLINTEND(bugprone-reserved-identifier)
