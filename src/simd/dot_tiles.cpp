// Raw intrinsics, one small function each, with the instruction set named on the function: the rest of the
// program is compiled for any x86-64.
#include "simd/dot_tiles.h"

// GCC 12's own header leaves a vector uninitialised on purpose and warns of it when inlined.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <array>
#include <cstring>
#include <utility>

#include "simd/instruction_sets.h"
#include "simd/transpose_16.h"

namespace chorale::simd {
namespace {

// Eight tiles of 16 rows of 64 bytes.
struct TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// One for each number of rows. Constants: GCC's _tile_loadconfig tells the compiler of the first bytes only,
// so that it may never write the rest of a local one.
template <std::size_t... Rows>
constexpr std::array<TileConfig, sizeof...(Rows)> make_configs(std::index_sequence<Rows...>) {
  std::array<TileConfig, sizeof...(Rows)> configs{};
  ((configs[Rows].rows[6] = configs[Rows].rows[7] = static_cast<std::uint8_t>(Rows)), ...);
  return configs;
}
alignas(64) constexpr auto tile_configs = make_configs(std::make_index_sequence<17>());

CHORALE_AMX void load_tile_config(int rows_of_last_two) {
  _tile_loadconfig(&tile_configs[static_cast<std::size_t>(rows_of_last_two)]);
}
CHORALE_AMX void release_tiles() { _tile_release(); }

struct Product {
  DotShape shape;
  const bfloat16* left;
  std::int64_t left_row;
  const bfloat16* right;
  std::int64_t right_row;
  float* out;
  std::int64_t out_row;
  bool accumulate;
};

// AMX: 32 x 32 outputs in four accumulators, two tiles of each operand; then what is left over, one tile at a
// time.
template <int Tall, int Wide>
CHORALE_AMX inline void amx_block(const Product& p, std::int64_t row, std::int64_t column) {
  const std::int64_t out_bytes = p.out_row * 4, left_bytes = p.left_row * 2, right_bytes = p.right_row * 2;
  float* out = p.out + row * p.out_row + column;
  const bfloat16* left = p.left + row * p.left_row;
  const bfloat16* right = p.right + column * 2;
  if (p.accumulate) {
    _tile_loadd(0, out, out_bytes);
    if constexpr (Wide == 2) _tile_loadd(1, out + 16, out_bytes);
    if constexpr (Tall == 2) _tile_loadd(2, out + 16 * p.out_row, out_bytes);
    if constexpr (Tall == 2 && Wide == 2) _tile_loadd(3, out + 16 * p.out_row + 16, out_bytes);
  } else {
    _tile_zero(0);
    if constexpr (Wide == 2) _tile_zero(1);
    if constexpr (Tall == 2) _tile_zero(2);
    if constexpr (Tall == 2 && Wide == 2) _tile_zero(3);
  }
  for (std::int64_t k = 0; k < p.shape.inner; k += 32) {
    _tile_loadd(4, left + k, left_bytes);
    if constexpr (Tall == 2) _tile_loadd(5, left + 16 * p.left_row + k, left_bytes);
    _tile_loadd(6, right + k / 2 * p.right_row, right_bytes);
    if constexpr (Wide == 2) _tile_loadd(7, right + k / 2 * p.right_row + 32, right_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Wide == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Tall == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (Tall == 2 && Wide == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, out_bytes);
  if constexpr (Wide == 2) _tile_stored(1, out + 16, out_bytes);
  if constexpr (Tall == 2) _tile_stored(2, out + 16 * p.out_row, out_bytes);
  if constexpr (Tall == 2 && Wide == 2) _tile_stored(3, out + 16 * p.out_row + 16, out_bytes);
}

template <int Tall>
CHORALE_AMX inline void amx_rows(const Product& p, std::int64_t row) {
  std::int64_t column = 0;
  for (; column + 32 <= p.shape.columns; column += 32) amx_block<Tall, 2>(p, row, column);
  if (column < p.shape.columns) amx_block<Tall, 1>(p, row, column);
}

CHORALE_AMX void amx_product(const Product& p) {
  std::int64_t row = 0;
  for (; row + 32 <= p.shape.rows; row += 32) amx_rows<2>(p, row);
  if (row < p.shape.rows) amx_rows<1>(p, row);
}

// AVX-512 BF16: each step adds a pair of products to sixteen columns.
template <int Rows, int Vectors>
CHORALE_AVX512_BF16 inline void avx512_block(const Product& p, std::int64_t row, std::int64_t column) {
  float* out = p.out + row * p.out_row + column;
  const bfloat16* left = p.left + row * p.left_row;
  const bfloat16* right = p.right + column * 2;
  __m512 sums[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v)
      sums[i][v] = p.accumulate ? _mm512_loadu_ps(out + i * p.out_row + v * 16) : _mm512_setzero_ps();
  for (std::int64_t k = 0; k < p.shape.inner; k += 2) {
    __m512bh columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(right + v * 32);
    for (int i = 0; i < Rows; ++i) {
      int pair;
      std::memcpy(&pair, left + i * p.left_row + k, sizeof pair);
      const auto x = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < Vectors; ++v) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], x, columns[v]);
    }
    right += p.right_row;
  }
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v) _mm512_storeu_ps(out + i * p.out_row + v * 16, sums[i][v]);
}

CHORALE_AVX512_BF16 void avx512_product(const Product& p) {
  for (std::int64_t row = 0; row < p.shape.rows; row += 8) {
    std::int64_t column = 0;
    for (; column + 32 <= p.shape.columns; column += 32) avx512_block<8, 2>(p, row, column);
    for (; column < p.shape.columns; column += 16) avx512_block<8, 1>(p, row, column);
  }
}

CHORALE_AVX512_BF16 void pack_transposed(const bfloat16* const* in, std::int64_t rows, std::int64_t columns,
                                         bfloat16* right, std::int64_t right_row) {
  for (std::int64_t i = 0; i < rows; i += 16)
    for (std::int64_t j = 0; j < columns; j += 32) {
      const std::int64_t width = columns - j < 32 ? columns - j : 32;
      const __mmask32 inside = width == 32 ? 0xffffffffu : (1u << width) - 1;
      __m512i block[16];
      for (std::int64_t r = 0; r < 16; ++r)
        block[r] = i + r < rows ? _mm512_maskz_loadu_epi16(inside, in[i + r] + j) : _mm512_setzero_si512();
      transpose_16x16(block);
      for (std::int64_t pair = 0; pair < 16; ++pair)
        _mm512_storeu_si512(right + (j / 2 + pair) * right_row + i * 2, block[pair]);
    }
}

CHORALE_AVX512_BF16 void pack_rows(const bfloat16* const* in, std::int64_t rows, std::int64_t columns,
                                   bfloat16* right, std::int64_t right_row) {
  alignas(64) std::uint16_t first[32], second[32];
  for (int i = 0; i < 32; ++i) {
    first[i] = static_cast<std::uint16_t>(i / 2 + i % 2 * 32);
    second[i] = static_cast<std::uint16_t>(16 + i / 2 + i % 2 * 32);
  }
  const __m512i low = _mm512_load_si512(first), high = _mm512_load_si512(second);
  const std::int64_t padded_rows = (rows + 31) / 32 * 32;
  for (std::int64_t i = 0; i < padded_rows; i += 2)
    for (std::int64_t j = 0; j < columns; j += 32) {
      const std::int64_t width = columns - j < 32 ? columns - j : 32;
      const __mmask32 inside = width == 32 ? 0xffffffffu : (1u << width) - 1;
      const __m512i a = i < rows ? _mm512_maskz_loadu_epi16(inside, in[i] + j) : _mm512_setzero_si512();
      const __m512i b =
          i + 1 < rows ? _mm512_maskz_loadu_epi16(inside, in[i + 1] + j) : _mm512_setzero_si512();
      bfloat16* to = right + i / 2 * right_row + j * 2;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
      if (width > 16) _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(a, high, b));
    }
}

}  // namespace

DotScope::DotScope(DotLevel level, int rows_of_last_two) : level_(level) {
  if (level_ == DotLevel::amx) load_tile_config(rows_of_last_two);
}
DotScope::~DotScope() {
  if (level_ == DotLevel::amx) release_tiles();
}

void dot_product(DotLevel level, const DotShape& shape, const bfloat16* left, std::int64_t left_row,
                 const bfloat16* right, std::int64_t right_row, float* out, std::int64_t out_row,
                 bool accumulate) {
  const Product product{shape, left, left_row, right, right_row, out, out_row, accumulate};
  if (level == DotLevel::amx)
    amx_product(product);
  else
    avx512_product(product);
}

void pack_pairs(const bfloat16* const* in, std::int64_t rows, std::int64_t columns, bfloat16* right,
                std::int64_t right_row) {
  pack_rows(in, rows, columns, right, right_row);
}
void pack_pairs_transposed(const bfloat16* const* in, std::int64_t rows, std::int64_t columns,
                           bfloat16* right, std::int64_t right_row) {
  pack_transposed(in, rows, columns, right, right_row);
}

}  // namespace chorale::simd
