// Products with panels of bfloat16 pairs as chains of float32, and rounding, for each instruction set.
#include <cstdint>

#include "simd/product.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/pair_kernels.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace chorale::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;
constexpr std::int64_t N = hn::MaxLanes(D());
constexpr std::int64_t pair_row = 64;  // bfloat16 values from one pair of inner indices to the next

// A pair's halves as float32: the first in the lower 16 bits, the second in the upper.
HWY_INLINE V first_half(hn::Vec<DU> pairs) { return hn::BitCast(D(), hn::ShiftLeft<16>(pairs)); }
HWY_INLINE V second_half(hn::Vec<DU> pairs) {
  return hn::BitCast(D(), hn::And(pairs, hn::Set(DU(), 0xffff0000u)));
}
HWY_INLINE hn::Vec<DU> load_pairs(const bfloat16* from) {
  return hn::LoadU(DU(), reinterpret_cast<const std::uint32_t*>(from));
}

// Rows rows and Vectors vectors of columns, sums in registers for the whole chain.
template <int Rows, int Vectors>
HWY_INLINE void pair_block(const PairArguments& p, std::int64_t row, std::int64_t column) {
  const D d;
  const float* a = p.a + row * p.a_row;
  const bfloat16* panel = p.panel + column * 2;
  float* out = p.out + row * p.out_row + column;
  V sums[Rows][Vectors];
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v)
      sums[i][v] = p.accumulate ? hn::LoadU(d, out + i * p.out_row + v * N) : hn::Zero(d);
  const auto step = [&](std::int64_t k, auto half) {
    V columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = half(load_pairs(panel + v * N * 2));
    for (int i = 0; i < Rows; ++i) {
      const V x = hn::Set(d, a[i * p.a_row + k]);
      for (int v = 0; v < Vectors; ++v) sums[i][v] = hn::MulAdd(x, columns[v], sums[i][v]);
    }
  };
  std::int64_t k = 0;
  for (; k + 2 <= p.inner; k += 2) {
    step(k, [](hn::Vec<DU> pairs) HWY_ATTR { return first_half(pairs); });
    step(k + 1, [](hn::Vec<DU> pairs) HWY_ATTR { return second_half(pairs); });
    panel += pair_row;
  }
  if (k < p.inner) step(k, [](hn::Vec<DU> pairs) HWY_ATTR { return first_half(pairs); });
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Vectors; ++v) hn::StoreU(sums[i][v], d, out + i * p.out_row + v * N);
}

// All columns for Rows rows, `Wide` of 16 at a time where there are as many.
template <int Rows, int Wide>
HWY_INLINE void pair_rows(const PairArguments& p, std::int64_t row) {
  constexpr int per_16 = 16 / N;
  std::int64_t column = 0;
  for (; column + Wide * 16 <= p.columns; column += std::int64_t{Wide} * 16)
    pair_block<Rows, Wide * per_16>(p, row, column);
  if constexpr (Wide > 1)
    for (; column < p.columns; column += 16) pair_block<Rows, per_16>(p, row, column);
}

HWY_NOINLINE void product_pairs_target(const PairArguments& p) {
  std::int64_t row = 0;
  // 16 registers hold 6 x 16 columns in halves; 32 registers hold 12 x 32.
  constexpr bool many_registers = N == 16;
  if constexpr (many_registers)
    for (; row + 12 <= p.rows; row += 12) pair_rows<12, 2>(p, row);
  for (; row + 6 <= p.rows; row += 6) pair_rows<6, many_registers ? 2 : 1>(p, row);
  switch (p.rows - row) {
    case 5:
      return pair_rows < 5, many_registers ? 2 : 1 > (p, row);
    case 4:
      return pair_rows < 4, many_registers ? 2 : 1 > (p, row);
    case 3:
      return pair_rows<3, 2>(p, row);
    case 2:
      return pair_rows<2, 2>(p, row);
    case 1:
      return pair_rows<1, 2>(p, row);
    default:
      return;
  }
}

HWY_NOINLINE void narrow_pairs_target(const float* first, const float* second, std::int64_t count,
                                      std::uint32_t* to) {
  const D d;
  const DU du;
  const auto pair = [&](V low, V high) HWY_ATTR {
    return hn::Or(hn::ShiftRight<16>(hn::BitCast(du, round_to_bfloat16(d, low))),
                  hn::BitCast(du, round_to_bfloat16(d, high)));
  };
  std::int64_t i = 0;
  for (; i + N <= count; i += N) {
    const V high = second == nullptr ? hn::Zero(d) : hn::LoadU(d, second + i);
    hn::StoreU(pair(hn::LoadU(d, first + i), high), du, to + i);
  }
  if (i == count) return;
  alignas(64) float low[16] = {}, high[16] = {};
  alignas(64) std::uint32_t pairs[16];
  for (std::int64_t r = i; r < count; ++r)
    low[r - i] = first[r], high[r - i] = second == nullptr ? 0.0f : second[r];
  hn::Store(pair(hn::Load(d, low), hn::Load(d, high)), du, pairs);
  for (std::int64_t r = i; r < count; ++r) to[r] = pairs[r - i];
}

HWY_NOINLINE void round_rows_target(float* x, std::int64_t row, std::int64_t rows, std::int64_t columns) {
  const D d;
  for (std::int64_t i = 0; i < rows; ++i, x += row) {
    std::int64_t j = 0;
    for (; j + N <= columns; j += N) hn::StoreU(round_to_bfloat16(d, hn::LoadU(d, x + j)), d, x + j);
    if (j == columns) continue;
    alignas(64) float rest[16] = {};
    for (std::int64_t r = j; r < columns; ++r) rest[r - j] = x[r];
    hn::Store(round_to_bfloat16(d, hn::Load(d, rest)), d, rest);
    for (std::int64_t r = j; r < columns; ++r) x[r] = rest[r - j];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace chorale::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace chorale::simd {
namespace {
HWY_EXPORT(product_pairs_target);
HWY_EXPORT(narrow_pairs_target);
HWY_EXPORT(round_rows_target);

// The first call of level() settles which targets CHORALE_SIMD allows.
void settle_level() {
  static const bool settled = !level().empty();
  (void)settled;
}
}  // namespace

void product_pairs(const PairArguments& arguments) {
  settle_level();
  HWY_DYNAMIC_DISPATCH(product_pairs_target)(arguments);
}
void narrow_pairs(const float* first, const float* second, std::int64_t count, std::uint32_t* to) {
  settle_level();
  HWY_DYNAMIC_DISPATCH(narrow_pairs_target)(first, second, count, to);
}
void round_rows(float* x, std::int64_t row, std::int64_t rows, std::int64_t columns) {
  settle_level();
  HWY_DYNAMIC_DISPATCH(round_rows_target)(x, row, rows, columns);
}

}  // namespace chorale::simd
#endif  // HWY_ONCE
