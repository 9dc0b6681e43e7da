// The one matrix product: rows x columns outer products over `inner`, each element a chain of fused
// multiply-adds in ascending order. Compiled once for each instruction set.
//
//   main loop        blocks of as many rows and columns as accumulators fit in registers
//   row remainder    fewer rows, more columns, so that the number of independent chains stays high
//   columns          always whole groups of 16: operands are padded
//
// How rows and columns are grouped changes no bit: elements are independent of each other.

#if defined(CHORALE_SIMD_PRODUCT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHORALE_SIMD_PRODUCT_INL_H
#undef CHORALE_SIMD_PRODUCT_INL_H
#else
#define CHORALE_SIMD_PRODUCT_INL_H
#endif

#include <hwy/highway.h>

#include "simd/product.h"

HWY_BEFORE_NAMESPACE();
namespace chorale::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Asks the memory for a part of p.ahead at each of `blocks` blocks.
struct Ahead {
  Ahead(const ProductArguments& p, std::int64_t blocks)
      : at(p.ahead), end(p.ahead + p.ahead_floats), step(round_up(p.ahead_floats / blocks + 1)) {}
  HWY_INLINE void ask() {
    for (const float* last = HWY_MIN(end, at + step); at < last; at += lanes) __builtin_prefetch(at, 0, 2);
  }
  const float *at, *end;
  std::int64_t step;
};

// One block: Rows rows and Groups groups of 16 columns, accumulators in registers for the whole chain.
template <int Rows, int Groups>
HWY_INLINE void product_block(const ProductArguments& p, std::int64_t row, std::int64_t group) {
  const hn::CappedTag<float, 16> d;
  using V = hn::Vec<decltype(d)>;
  constexpr std::int64_t N = hn::MaxLanes(d);
  constexpr int Vectors = Groups * (16 / N);

  // Where there are many rows of a, three to a pointer: base, base + row and base + 2 row are addresses of
  // one instruction, and what each row adds would not fit in registers.
  constexpr int rows_of_base = Rows > 8 ? 3 : Rows, bases = (Rows + rows_of_base - 1) / rows_of_base;
  const std::int64_t a_row = p.a.row, a_inner = p.a.inner;
  const float* a[bases];
  for (int i = 0; i < bases; ++i) a[i] = p.a.data + (row + rows_of_base * i) * a_row;
  const float* b = p.b + group * p.b_group;
  float* out = p.out + row * p.out_row + group * lanes;
  const auto b_offset = [&](int v) { return (v * N / 16) * p.b_group + (v * N) % 16; };

  V sums[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v)
      sums[i][v] = p.accumulate ? hn::LoadU(d, out + i * p.out_row + v * N) : hn::Zero(d);
  for (std::int64_t k = 0; k < p.shape.inner; ++k) {
    V columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = hn::LoadU(d, b + b_offset(v));
    for (int i = 0; i < Rows; ++i) {
      const V x = hn::Set(d, a[i / rows_of_base][i % rows_of_base * a_row]);
      for (int v = 0; v < Vectors; ++v) sums[i][v] = hn::MulAdd(x, columns[v], sums[i][v]);
    }
    for (const float*& base : a) base += a_inner;
    b += p.b_row;
  }
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v) hn::StoreU(sums[i][v], d, out + i * p.out_row + v * N);
}

// `groups` groups of columns from the first on, for Rows rows: wide blocks first.
template <int Rows, int Wide>
HWY_INLINE void product_rows(const ProductArguments& p, std::int64_t row, std::int64_t first,
                             std::int64_t groups, Ahead& ahead) {
  for (; groups >= Wide; first += Wide, groups -= Wide) {
    ahead.ask();
    product_block<Rows, Wide>(p, row, first);
  }
  if constexpr (Wide > 1) product_rows<Rows, Wide / 2>(p, row, first, groups, ahead);
}

// 16 vector registers hold 6 x 16 columns in halves of 8; 32 registers hold 12 x 32 whole.
constexpr bool many_registers = hn::MaxLanes(hn::CappedTag<float, 16>()) == 16;
constexpr int tall = many_registers ? 12 : 6, wide = many_registers ? 2 : 1;

HWY_INLINE void product_groups(const ProductArguments& p, std::int64_t first, std::int64_t groups,
                               Ahead& ahead) {
  std::int64_t row = 0;
  for (; row + tall <= p.shape.rows; row += tall) product_rows<tall, wide>(p, row, first, groups, ahead);
  if constexpr (many_registers) {
    if (row + 8 <= p.shape.rows) product_rows<8, 2>(p, row, first, groups, ahead), row += 8;
    if (row + 4 <= p.shape.rows) product_rows<4, 2>(p, row, first, groups, ahead), row += 4;
  }
  switch (p.shape.rows - row) {
    case 5:
      return product_rows<5, 1>(p, row, first, groups, ahead);
    case 4:
      return product_rows<4, 1>(p, row, first, groups, ahead);
    case 3:
      return product_rows<3, 2>(p, row, first, groups, ahead);
    case 2:
      return product_rows < 2, many_registers ? 4 : 3 > (p, row, first, groups, ahead);
    case 1:
      return product_rows < 1, many_registers ? 8 : 4 > (p, row, first, groups, ahead);
    default:
      return;
  }
}

HWY_NOINLINE void product(const ProductArguments& p) {
  const std::int64_t groups = round_up(p.shape.columns) / lanes;
  Ahead ahead(p, (p.shape.rows + tall - 1) / tall * ((groups + wide - 1) / wide));
  // Groups that a first-level cache holds beside their rows are multiplied with all of them before the next;
  // else all groups with a few rows. Where the inner values of a group lie at multiples of 256 bytes the
  // cache would not hold it.
  constexpr std::int64_t cached = 8 * 1024 / sizeof(float), few_rows = 12;
  if (p.b_row % 64 == 0 || p.shape.inner * lanes > cached || p.shape.rows <= few_rows)
    return product_groups(p, 0, groups, ahead);
  for (std::int64_t group = 0; group < groups; group += wide)
    product_groups(p, group, HWY_MIN(std::int64_t{wide}, groups - group), ahead);
}

// The product that leaves out invisible pairs: one row at a time, a branch for each pair.
HWY_NOINLINE void product_visible(const ProductArguments& p, const std::uint8_t* visible) {
  const hn::CappedTag<float, 16> d;
  constexpr std::int64_t N = hn::MaxLanes(d);
  constexpr int Vectors = 16 / N;
  const std::int64_t groups = round_up(p.shape.columns) / lanes;
  for (std::int64_t row = 0; row < p.shape.rows; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      float* out = p.out + row * p.out_row + group * lanes;
      hn::Vec<decltype(d)> sums[Vectors];
      for (int v = 0; v < Vectors; ++v) sums[v] = p.accumulate ? hn::LoadU(d, out + v * N) : hn::Zero(d);
      for (std::int64_t k = 0; k < p.shape.inner; ++k) {
        const std::int64_t pair = row * p.a.row + k * p.a.inner;
        if (!visible[pair]) continue;
        const float* b = p.b + group * p.b_group + k * p.b_row;
        for (int v = 0; v < Vectors; ++v)
          sums[v] = hn::MulAdd(hn::Set(d, p.a.data[pair]), hn::LoadU(d, b + v * N), sums[v]);
      }
      for (int v = 0; v < Vectors; ++v) hn::StoreU(sums[v], d, out + v * N);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace chorale::simd
HWY_AFTER_NAMESPACE();

#endif
