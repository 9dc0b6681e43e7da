// Products of a few rows with rows that lie anywhere (RowsArguments in product.h). Compiled once for each
// instruction set.
//
// With a few rows no operand is worth packing: each value is loaded once, widened if it is of 16 bits, and
// what it is loaded into is already the register that the products want. Columns of b^T are made of blocks of
// as many rows as a register has lanes, transposed in registers.

#if defined(CHORALE_SIMD_ROWS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHORALE_SIMD_ROWS_INL_H
#undef CHORALE_SIMD_ROWS_INL_H
#else
#define CHORALE_SIMD_ROWS_INL_H
#endif

#include <hwy/highway.h>

#include <cstring>

#include "simd/codecs-inl.h"
#include "simd/product.h"
#include "simd/transpose_16.h"

HWY_BEFORE_NAMESPACE();
namespace chorale::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::int64_t row_lanes = hn::MaxLanes(FloatTag());

// block[j][i] = block[i][j]: by pairs, fours, then halves of registers.
HWY_INLINE void transpose_registers([[maybe_unused]] Floats (&block)[row_lanes]) {
#if HWY_TARGET <= HWY_AVX3
  __m512i rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_castps_si512(block[i].raw);
  transpose_16x16(rows);
  for (int i = 0; i < 16; ++i) block[i].raw = _mm512_castsi512_ps(rows[i]);
#elif HWY_TARGET == HWY_AVX2
  const hn::CappedTag<float, 8> d;
  const hn::Repartition<std::uint64_t, decltype(d)> pair;
  Floats t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = hn::InterleaveLower(d, block[i], block[i + 1]);
    t[i + 1] = hn::InterleaveUpper(d, block[i], block[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      const auto low = hn::BitCast(pair, t[i + j]), high = hn::BitCast(pair, t[i + j + 2]);
      block[i + 2 * j] = hn::BitCast(d, hn::InterleaveLower(pair, low, high));
      block[i + 2 * j + 1] = hn::BitCast(d, hn::InterleaveUpper(pair, low, high));
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = hn::ConcatLowerLower(d, block[j + 4], block[j]);
    t[j + 4] = hn::ConcatUpperUpper(d, block[j + 4], block[j]);
  }
  for (int j = 0; j < 8; ++j) block[j] = t[j];
#endif  // never called on others
}

template <class Codec>
HWY_INLINE Floats load(const std::byte* row, std::int64_t column) {
  const auto* from = reinterpret_cast<const typename Codec::Bits*>(row) + column;
  return Codec::widen(hn::LoadU(typename Codec::DB(), from));
}
// `count` values, zeros after them; nothing past them is touched.
template <class Codec>
HWY_INLINE Floats load_part(const std::byte* row, std::int64_t column, std::int64_t count) {
  typename Codec::Bits part[row_lanes] = {};
  std::memcpy(part, reinterpret_cast<const typename Codec::Bits*>(row) + column,
              static_cast<std::size_t>(count) * sizeof(typename Codec::Bits));
  return Codec::widen(hn::LoadU(typename Codec::DB(), part));
}

// out[i][j] for Rows rows of a and one register of rows of b.
template <class Codec, int Rows>
HWY_INLINE void transposed_block(const RowsArguments& p, std::int64_t first, std::int64_t j) {
  const FloatTag d;
  constexpr std::int64_t N = row_lanes;
  const float* a = p.a + first * p.a_row;
  Floats sums[Rows], block[N];
  for (Floats& sum : sums) sum = hn::Zero(d);
  std::int64_t c = 0;
  for (; c + N <= p.columns; c += N) {
    for (int i = 0; i < N; ++i) block[i] = load<Codec>(p.b[j + i], c);
    transpose_registers(block);
    for (int k = 0; k < N; ++k)
      for (int r = 0; r < Rows; ++r)
        sums[r] = hn::MulAdd(hn::Set(d, a[r * p.a_row + c + k]), block[k], sums[r]);
  }
  if (const std::int64_t left = p.columns - c; left > 0) {
    for (int i = 0; i < N; ++i) block[i] = load_part<Codec>(p.b[j + i], c, left);
    transpose_registers(block);
    alignas(64) float columns[N * N];
    for (int k = 0; k < N; ++k) hn::Store(block[k], d, columns + k * N);
    for (std::int64_t k = 0; k < left; ++k)
      for (int r = 0; r < Rows; ++r)
        sums[r] = hn::MulAdd(hn::Set(d, a[r * p.a_row + c + k]), hn::Load(d, columns + k * N), sums[r]);
  }
  for (int r = 0; r < Rows; ++r) hn::StoreU(sums[r], d, p.out + (first + r) * p.out_row + j);
}

// out[i][c] for Rows rows and Vectors registers of columns, over all rows of b. Of the last register only
// `last` columns are there.
template <class Codec, int Rows, int Vectors>
HWY_INLINE void sum_block(const RowsArguments& p, std::int64_t first, std::int64_t column,
                          std::int64_t last) {
  const FloatTag d;
  constexpr std::int64_t N = row_lanes;
  const float* a = p.a + first * p.a_row;
  float* out = p.out + first * p.out_row + column;
  Floats sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sums[r][v] = hn::LoadU(d, out + r * p.out_row + v * N);
  for (std::int64_t j = 0; j < p.b_rows; ++j) {
    Floats columns[Vectors];
    for (int v = 0; v < Vectors; ++v)
      columns[v] = Vectors == 1 && last < N ? load_part<Codec>(p.b[j], column, last)
                                            : load<Codec>(p.b[j], column + v * N);
    for (int r = 0; r < Rows; ++r) {
      const Floats x = hn::Set(d, a[r * p.a_row + j]);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = hn::MulAdd(x, columns[v], sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) hn::StoreU(sums[r][v], d, out + r * p.out_row + v * N);
}

template <class Codec, int Rows, int Wide>
HWY_INLINE void sum_columns(const RowsArguments& p, std::int64_t first, std::int64_t column) {
  for (; column + Wide * row_lanes <= p.columns; column += Wide * row_lanes)
    sum_block<Codec, Rows, Wide>(p, first, column, row_lanes);
  if constexpr (Wide > 1) return sum_columns<Codec, Rows, Wide / 2>(p, first, column);
  if (column < p.columns) sum_block<Codec, Rows, 1>(p, first, column, p.columns - column);
}

template <class Codec>
struct Transposed {
  template <int Rows>
  static HWY_INLINE void run(const RowsArguments& p, std::int64_t first) {
    for (std::int64_t j = 0; j < round_up(p.b_rows); j += row_lanes)
      transposed_block<Codec, Rows>(p, first, j);
  }
};
template <class Codec>
struct Sum {
  template <int Rows>
  static HWY_INLINE void run(const RowsArguments& p, std::int64_t first) {
    constexpr int accumulators = row_lanes == 16 ? 16 : 8;
    constexpr int widest = Rows <= 2 ? accumulators / 2 : Rows <= 4 ? accumulators / 4 : 2;
    sum_columns<Codec, Rows, widest>(p, first, 0);
  }
};

// As many rows at a time as registers hold.
template <class Product>
HWY_INLINE void for_rows(const RowsArguments& p) {
  constexpr int most = row_lanes == 16 ? 8 : 4;
  std::int64_t first = 0;
  for (; first + most <= p.rows; first += most) Product::template run<most>(p, first);
  switch (p.rows - first) {
    case 7:
      return Product::template run<HWY_MIN(most, 7)>(p, first);
    case 6:
      return Product::template run<HWY_MIN(most, 6)>(p, first);
    case 5:
      return Product::template run<HWY_MIN(most, 5)>(p, first);
    case 4:
      return Product::template run<4>(p, first);
    case 3:
      return Product::template run<3>(p, first);
    case 2:
      return Product::template run<2>(p, first);
    case 1:
      return Product::template run<1>(p, first);
    default:
      return;
  }
}

template <template <class> class Product>
HWY_INLINE void for_rows_of_type(const RowsArguments& p) {
  if (p.b_dtype == DType::bfloat16) return for_rows<Product<Bfloat16Codec>>(p);
  if (p.b_dtype == DType::float16) return for_rows<Product<Float16Codec>>(p);
  for_rows<Product<Float32Codec>>(p);
}

HWY_NOINLINE void product_rows_transposed(const RowsArguments& p) { for_rows_of_type<Transposed>(p); }
HWY_NOINLINE void product_rows(const RowsArguments& p) { for_rows_of_type<Sum>(p); }

}  // namespace HWY_NAMESPACE
}  // namespace chorale::simd
HWY_AFTER_NAMESPACE();

#endif
