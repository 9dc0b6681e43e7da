// The functions of simd.h, compiled for each instruction set by Highway's foreach_target and called through
// one table that is chosen at first use.

#include "simd/simd.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/settings.h"
#include "base/threads.h"
#include "simd/product.h"

// The instruction sets worth having: the order of arithmetic needs fused multiply-add (AVX2 and later).
// Highway adds its baseline, which is never called.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "simd/simd.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "simd/codecs-inl.h"
#include "simd/math-inl.h"
#include "simd/product-inl.h"
#include "simd/rows-inl.h"

#ifndef CHORALE_SIMD_TABLE
#define CHORALE_SIMD_TABLE
namespace chorale::simd {
// What each instruction set provides.
struct Functions {
  const char* level;
  void (*to_float)(const void*, DType, float*, std::int64_t);
  void (*from_float)(const float*, DType, void*, std::int64_t);
  void (*product)(const ProductArguments&);
  void (*product_visible)(const ProductArguments&, const std::uint8_t*);
  void (*product_rows_transposed)(const RowsArguments&);
  void (*product_rows)(const RowsArguments&);
  void (*transpose)(const float*, std::int64_t, std::int64_t, std::int64_t, float*, std::int64_t);
  float (*dot)(const float*, const float*, std::int64_t);
  float (*sum)(const float*, std::int64_t);
  float (*max)(const float*, std::int64_t);
  float (*sum_exp)(const float*, std::int64_t, float, float);
  void (*softmax_gradient)(const float*, std::int64_t, float, float, float, float, float*);
  void (*exp)(const float*, float*, std::int64_t);
  void (*tanh)(const float*, float*, std::int64_t);
  void (*log)(const float*, float*, std::int64_t);
  void (*exp2_nonpositive)(const float*, float*, std::int64_t);
  void (*softmax_rows)(float*, std::int64_t, std::int64_t, std::int64_t, const float*, float, RowSoftmax*);
  void (*softmax_rows_bfloat16)(const float*, std::int64_t, std::int64_t, std::int64_t, const float*, float,
                                RowSoftmax*, bfloat16*, std::int64_t);
  void (*softmax_row_backward)(float*, float*, std::int64_t, float, float, float);
  void (*scale)(float*, float, std::int64_t);
  void (*divide)(float*, float, std::int64_t);
  void (*scale_add)(const float*, float, float*, std::int64_t);
};
}  // namespace chorale::simd
#endif

HWY_BEFORE_NAMESPACE();
namespace chorale::simd {
namespace HWY_NAMESPACE {

using D = FloatTag;
using V = Floats;
constexpr std::int64_t N = hn::MaxLanes(D());

// y[i] = f(x[i]): main loop, then the remainder through a padded copy, so that both run the same
// instructions.
template <class F>
HWY_INLINE void map(const float* x, float* y, std::int64_t count, F f) {
  const D d;
  std::int64_t i = 0;
  for (; i + N <= count; i += N) hn::StoreU(f(hn::LoadU(d, x + i)), d, y + i);
  if (i == count) return;
  alignas(64) float rest[16] = {};
  std::memcpy(rest, x + i, static_cast<std::size_t>(count - i) * sizeof(float));
  hn::Store(f(hn::Load(d, rest)), d, rest);
  std::memcpy(y + i, rest, static_cast<std::size_t>(count - i) * sizeof(float));
}

void exp_array(const float* x, float* y, std::int64_t count) {
  map(x, y, count, [](V v) { return exp_vector(D(), v); });
}
void tanh_array(const float* x, float* y, std::int64_t count) {
  map(x, y, count, [](V v) { return tanh_vector(D(), v); });
}
void log_array(const float* x, float* y, std::int64_t count) {
  map(x, y, count, [](V v) { return log_vector(D(), v); });
}
void exp2_nonpositive_array(const float* x, float* y, std::int64_t count) {
  map(x, y, count, [](V v) { return exp2_of_difference(D(), v); });
}
void scale_array(float* x, float factor, std::int64_t count) {
  const V f = hn::Set(D(), factor);
  map(x, x, count, [=](V v) { return hn::Mul(v, f); });
}
void divide_array(float* x, float divisor, std::int64_t count) {
  const V f = hn::Set(D(), divisor);
  map(x, x, count, [=](V v) { return hn::Div(v, f); });
}
void scale_add_array(const float* x, float factor, float* y, std::int64_t count) {
  const D d;
  const V f = hn::Set(d, factor);
  std::int64_t i = 0;
  for (; i + N <= count; i += N)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, x + i), f, hn::LoadU(d, y + i)), d, y + i);
  for (; i < count; ++i) y[i] = std::fma(x[i], factor, y[i]);
}

// Sixteen partial results, element i in partial i % 16, then a tree 8, 4, 2, 1. `neutral` changes no partial.
template <class Step, class Combine>
HWY_INLINE float fold(std::int64_t count, float neutral, Step step, Combine combine) {
  const D d;
  V partial[16 / N];
  for (V& p : partial) p = hn::Set(d, neutral);
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (std::int64_t v = 0; v < 16 / N; ++v) partial[v] = step.whole(partial[v], i + v * N);
  alignas(64) float lane[16];
  for (std::int64_t v = 0; v < 16 / N; ++v) hn::Store(partial[v], d, lane + v * N);
  for (std::int64_t j = 0; i + j < count; ++j) lane[j] = step.one(lane[j], i + j);
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] = combine(lane[j], lane[j + half]);
  return lane[0];
}

struct SumStep {
  const float* x;
  HWY_INLINE V whole(V partial, std::int64_t i) const { return hn::Add(partial, hn::LoadU(D(), x + i)); }
  HWY_INLINE float one(float partial, std::int64_t i) const { return partial + x[i]; }
};
struct DotStep {
  const float *x, *y;
  HWY_INLINE V whole(V partial, std::int64_t i) const {
    return hn::MulAdd(hn::LoadU(D(), x + i), hn::LoadU(D(), y + i), partial);
  }
  HWY_INLINE float one(float partial, std::int64_t i) const { return std::fma(x[i], y[i], partial); }
};
// NaN anywhere gives NaN: a comparison alone would drop it on one side.
struct MaxStep {
  const float* x;
  HWY_INLINE V whole(V partial, std::int64_t i) const {
    const V v = hn::LoadU(D(), x + i);
    return hn::IfThenElse(hn::Or(hn::Gt(v, partial), hn::IsNaN(v)), v, partial);
  }
  HWY_INLINE float one(float partial, std::int64_t i) const { return larger(partial, x[i]); }
  static HWY_INLINE float larger(float a, float b) { return b > a || b != b ? b : a; }
};

float sum_array(const float* x, std::int64_t count) {
  return fold(count, 0.0f, SumStep{x}, [](float a, float b) { return a + b; });
}
float dot_array(const float* x, const float* y, std::int64_t count) {
  return fold(count, 0.0f, DotStep{x, y}, [](float a, float b) { return a + b; });
}
float max_array(const float* x, std::int64_t count) {
  return fold(count, -std::numeric_limits<float>::infinity(), MaxStep{x}, MaxStep::larger);
}

HWY_INLINE V exp_of_scaled(V x, V temperature, V largest) {
  return exp_vector(D(), hn::Sub(hn::Div(x, temperature), largest));
}
struct SumExpStep {
  const float* x;
  float temperature, largest;
  HWY_INLINE V value(V v) const { return exp_of_scaled(v, hn::Set(D(), temperature), hn::Set(D(), largest)); }
  HWY_INLINE V whole(V partial, std::int64_t i) const {
    return hn::Add(partial, value(hn::LoadU(D(), x + i)));
  }
  HWY_INLINE float one(float partial, std::int64_t i) const {
    return partial + hn::GetLane(value(hn::Set(D(), x[i])));
  }
};
float sum_exp_array(const float* x, std::int64_t count, float temperature, float largest) {
  return fold(count, 0.0f, SumExpStep{x, temperature, largest}, [](float a, float b) { return a + b; });
}
void softmax_gradient_array(const float* x, std::int64_t count, float temperature, float largest, float sum,
                            float factor, float* y) {
  const D d;
  const V t = hn::Set(d, temperature), l = hn::Set(d, largest), s = hn::Set(d, sum), f = hn::Set(d, factor);
  map(x, y, count,
      [=](V v) HWY_ATTR { return hn::Mul(f, hn::Sub(hn::Zero(D()), hn::Div(exp_of_scaled(v, t, l), s))); });
}

// A vector of row elements from i on; -inf past the end, so that p is 0 there.
HWY_INLINE V load_scores(const float* x, std::int64_t i, std::int64_t count) {
  const D d;
  if (i + N <= count) return hn::LoadU(d, x + i);
  alignas(64) float rest[16];
  for (std::int64_t j = 0; j < N; ++j)
    rest[j] = i + j < count ? x[i + j] : -std::numeric_limits<float>::infinity();
  return hn::Load(d, rest);
}

// Lanes of one vector folded by halves: 8, 4, 2, 1.
template <class DV, class VV>
HWY_INLINE float fold_halves(DV, VV v) {
#if HWY_TARGET == HWY_SCALAR
  return hn::GetLane(v);
#else
  if constexpr (hn::MaxLanes(DV()) == 4) {
    v = hn::Add(v, hn::Shuffle1032(v));
    return hn::GetLane(hn::Add(v, hn::Shuffle2301(v)));
  } else {
    const hn::Half<DV> half;
    return fold_halves(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
#endif
}

// Sixteen partial sums folded as 8, 4, 2, 1.
HWY_INLINE float fold_lanes(V (&partial)[16 / N]) {
  for (std::int64_t half = 16 / N / 2; half > 0; half /= 2)
    for (std::int64_t v = 0; v < half; ++v) partial[v] = hn::Add(partial[v], partial[v + half]);
  return fold_halves(D(), partial[0]);
}

// Rows side by side, so that the steps of one do not wait for each other: each is computed alone.
// store(r, p, i, whole) takes the probabilities of row r from i on; not whole: some lie past the end.
template <int Rows, class Store>
HWY_INLINE void softmax_block(const float* x, std::int64_t x_row, std::int64_t count, const float* before,
                              float factor, RowSoftmax* to, Store store) {
  const D d;
  V largest[Rows], offset[Rows], partial[Rows][16 / N];
  // Groups of sixteen without a condition, then what is left over.
  const auto for_groups = [&](auto step) HWY_ATTR {
    std::int64_t i = 0;
    for (; i + 16 <= count; i += 16) step(i, std::true_type());
    if (i < count) step(i, std::false_type());
  };
  const auto load = [&](int r, std::int64_t i, auto whole) HWY_ATTR {
    if constexpr (whole)
      return hn::LoadU(d, x + r * x_row + i);
    else
      return load_scores(x + r * x_row, i, count);
  };
  for (int r = 0; r < Rows; ++r) largest[r] = hn::Set(d, before[r]);
  for_groups([&](std::int64_t i, auto whole) HWY_ATTR {
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < 16; v += N)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) largest[r] = hn::Max(largest[r], load(r, i + v, whole));
  });
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    to[r].maximum = hn::GetLane(hn::MaxOfLanes(d, largest[r]));
    // With nothing to see, any offset gives p = exp2(-inf) = 0.
    const bool nothing = to[r].maximum == -std::numeric_limits<float>::infinity();
    offset[r] = hn::Set(d, nothing ? 0.0f : to[r].maximum);
    for (V& p : partial[r]) p = hn::Zero(d);
  }
  const V scale = hn::Set(d, factor);
  for_groups([&](std::int64_t i, auto whole) HWY_ATTR {
#pragma GCC unroll 8
    for (std::int64_t v = 0; v < 16 / N; ++v)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const V p = exp2_of_difference(d, hn::Mul(hn::Sub(load(r, i + v * N, whole), offset[r]), scale));
        store(r, p, i + v * N, whole);
        partial[r][v] = hn::Add(partial[r][v], p);
      }
  });
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) to[r].sum = fold_lanes(partial[r]);
}

// `store_at(row)` gives what stores that row and those after it.
template <class StoreAt>
HWY_INLINE void softmax_rows_with(const float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count,
                                  const float* before, float factor, RowSoftmax* to, StoreAt store_at) {
  constexpr int together = N == 16 ? 4 : 2;
  std::int64_t r = 0;
  for (; r + together <= rows; r += together)
    softmax_block<together>(x + r * x_row, x_row, count, before + r, factor, to + r, store_at(r));
  for (; r < rows; ++r)
    softmax_block<1>(x + r * x_row, x_row, count, before + r, factor, to + r, store_at(r));
}

template <class Codec>
HWY_INLINE void widen_array(const typename Codec::Bits* from, float* to, std::int64_t count) {
  const typename Codec::DB db;
  std::int64_t i = 0;
  for (; i + N <= count; i += N) hn::StoreU(Codec::widen(hn::LoadU(db, from + i)), D(), to + i);
  if (i >= count) return;
  typename Codec::Bits in[16] = {};
  alignas(64) float out[16];
  std::memcpy(in, from + i, static_cast<std::size_t>(count - i) * sizeof(typename Codec::Bits));
  hn::Store(Codec::widen(hn::LoadU(db, in)), D(), out);
  std::memcpy(to + i, out, static_cast<std::size_t>(count - i) * 4);
}
template <class Codec>
HWY_INLINE void narrow_array(const float* from, typename Codec::Bits* to, std::int64_t count) {
  const typename Codec::DB db;
  std::int64_t i = 0;
  for (; i + N <= count; i += N) hn::StoreU(Codec::narrow(hn::LoadU(D(), from + i)), db, to + i);
  if (i >= count) return;
  alignas(64) float in[16] = {};
  typename Codec::Bits out[16];
  std::memcpy(in, from + i, static_cast<std::size_t>(count - i) * 4);
  hn::StoreU(Codec::narrow(hn::Load(D(), in)), db, out);
  std::memcpy(to + i, out, static_cast<std::size_t>(count - i) * sizeof(typename Codec::Bits));
}

HWY_INLINE void store_part(V v, float* to, std::int64_t count) {
  alignas(64) float all[16];
  hn::Store(v, D(), all);
  std::memcpy(to, all, static_cast<std::size_t>(count) * sizeof(float));
}

void softmax_row_backward_array(float* x, float* gradient, std::int64_t count, float factor, float offset,
                                float delta) {
  const D d;
  const V f = hn::Set(d, factor), o = hn::Set(d, offset), shift = hn::Set(d, delta);
  const auto step = [&](V score, V& g) {
    const V p = exp2_of_difference(d, hn::MulSub(score, f, o));
    g = hn::Mul(p, hn::Sub(g, shift));
    return p;
  };
  std::int64_t i = 0;
  for (; i + N <= count; i += N) {
    V g = hn::LoadU(d, gradient + i);
    hn::StoreU(step(hn::LoadU(d, x + i), g), d, x + i);
    hn::StoreU(g, d, gradient + i);
  }
  if (i == count) return;
  V g = load_scores(gradient, i, count);
  store_part(step(load_scores(x, i, count), g), x + i, count - i);
  store_part(g, gradient + i, count - i);
}

void softmax_rows_float(float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count,
                        const float* before, float factor, RowSoftmax* to) {
  softmax_rows_with(x, x_row, rows, count, before, factor, to, [=](std::int64_t first) {
    return [=](std::int64_t r, V p, std::int64_t i, auto whole) HWY_ATTR {
      float* row = x + (first + r) * x_row;
      if (whole || i + N <= count) return hn::StoreU(p, D(), row + i);
      if (i < count) store_part(p, row + i, count - i);
    };
  });
}
void softmax_rows_bfloat16(const float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count,
                           const float* before, float factor, RowSoftmax* to, bfloat16* p,
                           std::int64_t p_row) {
  auto* bits = reinterpret_cast<std::uint16_t*>(p);
  softmax_rows_with(x, x_row, rows, count, before, factor, to, [=](std::int64_t first) {
    return [=](std::int64_t r, V value, std::int64_t i, auto) HWY_ATTR {
      hn::StoreU(Bfloat16Codec::narrow(value), Bfloat16Codec::DB(), bits + (first + r) * p_row + i);
    };
  });
  for (std::int64_t r = 0; r < rows; ++r)
    std::fill(bits + r * p_row + round_up(count), bits + r * p_row + round_up(count, 32), std::uint16_t{0});
}

void to_float_array(const void* from, DType dtype, float* to, std::int64_t count) {
  switch (dtype) {
    case DType::float32:
      std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
      return;
    case DType::bfloat16:
      return widen_array<Bfloat16Codec>(static_cast<const std::uint16_t*>(from), to, count);
    case DType::float16:
      return widen_array<Float16Codec>(static_cast<const std::uint16_t*>(from), to, count);
    case DType::float8_e4m3:
      return widen_array<Float8E4m3Codec>(static_cast<const std::uint8_t*>(from), to, count);
  }
}
void from_float_array(const float* from, DType dtype, void* to, std::int64_t count) {
  switch (dtype) {
    case DType::float32:
      std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
      return;
    case DType::bfloat16:
      return narrow_array<Bfloat16Codec>(from, static_cast<std::uint16_t*>(to), count);
    case DType::float16:
      return narrow_array<Float16Codec>(from, static_cast<std::uint16_t*>(to), count);
    case DType::float8_e4m3:
      return narrow_array<Float8E4m3Codec>(from, static_cast<std::uint8_t*>(to), count);
  }
}

// As many rows and columns as a register has lanes.
HWY_INLINE void transpose_block(const float* in, std::int64_t in_row, float* out, std::int64_t out_row) {
  V block[N];
  for (std::int64_t i = 0; i < N; ++i) block[i] = hn::LoadU(D(), in + i * in_row);
  transpose_registers(block);
  for (std::int64_t i = 0; i < N; ++i) hn::StoreU(block[i], D(), out + i * out_row);
}

// In blocks, sixteen rows before the next columns, so that every written cache line is filled at once; what
// is left over one by one.
void transpose_array(const float* in, std::int64_t in_row, std::int64_t rows, std::int64_t columns,
                     float* out, std::int64_t out_row) {
  for (std::int64_t i = 0; i < rows; i += 16) {
    const std::int64_t height = HWY_MIN(std::int64_t{16}, rows - i), whole = height / N * N;
    std::int64_t j = 0;
    for (; j + N <= columns; j += N)
      for (std::int64_t r = 0; r < whole; r += N)
        transpose_block(in + (i + r) * in_row + j, in_row, out + j * out_row + i + r, out_row);
    for (std::int64_t column = 0; column < columns; ++column)
      for (std::int64_t r = column < j ? whole : 0; r < height; ++r)
        out[column * out_row + i + r] = in[(i + r) * in_row + column];
  }
}

const Functions* functions_of_target() {
  static const Functions functions = {
#if HWY_TARGET <= HWY_AVX3
    "avx512",
#else
    "avx2",
#endif
    to_float_array,
    from_float_array,
    product,
    product_visible,
    product_rows_transposed,
    product_rows,
    transpose_array,
    dot_array,
    sum_array,
    max_array,
    sum_exp_array,
    softmax_gradient_array,
    exp_array,
    tanh_array,
    log_array,
    exp2_nonpositive_array,
    softmax_rows_float,
    softmax_rows_bfloat16,
    softmax_row_backward_array,
    scale_array,
    divide_array,
    scale_add_array
  };
  return &functions;
}

}  // namespace HWY_NAMESPACE
}  // namespace chorale::simd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace chorale::simd {
namespace {

HWY_EXPORT(functions_of_target);

const Functions& choose() {
  if (read_settings().simd == "avx2") hwy::DisableTargets(HWY_AVX3 | (HWY_AVX3 - 1));
  return *HWY_DYNAMIC_DISPATCH(functions_of_target)();
}

const Functions& functions() {
  static const Functions& chosen = choose();
  return chosen;
}

}  // namespace

Status supported() {
  if (hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3)) return Status::ok();
  return Status::unsupported("needs AVX2 and FMA, which this processor lacks");
}
std::string level() { return functions().level; }

void to_float(const void* from, DType dtype, float* to, std::int64_t count) {
  functions().to_float(from, dtype, to, count);
}
void from_float(const float* from, DType dtype, void* to, std::int64_t count) {
  functions().from_float(from, dtype, to, count);
}

void multiply(const ProductShape& shape, const Operand& a, const float* b, std::int64_t b_row, float* out,
              std::int64_t out_row, bool accumulate) {
  functions().product({shape, a, b, b_row, lanes, out, out_row, accumulate});
}
void multiply_visible(const ProductShape& shape, const Operand& a, const float* b, std::int64_t b_row,
                      const std::uint8_t* visible, float* out, std::int64_t out_row, bool accumulate) {
  functions().product_visible({shape, a, b, b_row, lanes, out, out_row, accumulate}, visible);
}

void product(const ProductArguments& arguments) { functions().product(arguments); }
void product_visible(const ProductArguments& arguments, const std::uint8_t* visible) {
  functions().product_visible(arguments, visible);
}

void product_rows_transposed(const RowsArguments& arguments) {
  functions().product_rows_transposed(arguments);
}
void product_rows(const RowsArguments& arguments) { functions().product_rows(arguments); }

void transpose(const float* in, std::int64_t in_row, std::int64_t rows, std::int64_t columns, float* out,
               std::int64_t out_row) {
  functions().transpose(in, in_row, rows, columns, out, out_row);
}
float sum(const float* x, std::int64_t count) { return functions().sum(x, count); }
float dot(const float* x, const float* y, std::int64_t count) { return functions().dot(x, y, count); }
float max(const float* x, std::int64_t count) { return functions().max(x, count); }
float sum_exp(const float* x, std::int64_t count, float temperature, float largest) {
  return functions().sum_exp(x, count, temperature, largest);
}
void softmax_gradient(const float* x, std::int64_t count, float temperature, float largest, float sum,
                      float factor, float* y) {
  functions().softmax_gradient(x, count, temperature, largest, sum, factor, y);
}
void exp(const float* x, float* y, std::int64_t count) { functions().exp(x, y, count); }
void tanh(const float* x, float* y, std::int64_t count) { functions().tanh(x, y, count); }
void log(const float* x, float* y, std::int64_t count) { functions().log(x, y, count); }
void softmax_row_backward(float* x, float* gradient, std::int64_t count, float factor, float offset,
                          float delta) {
  functions().softmax_row_backward(x, gradient, count, factor, offset, delta);
}
void exp2_nonpositive(const float* x, float* y, std::int64_t count) {
  functions().exp2_nonpositive(x, y, count);
}
void softmax_rows(float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count, const float* before,
                  float factor, RowSoftmax* to) {
  functions().softmax_rows(x, x_row, rows, count, before, factor, to);
}
void softmax_rows(const float* x, std::int64_t x_row, std::int64_t rows, std::int64_t count,
                  const float* before, float factor, RowSoftmax* to, bfloat16* p, std::int64_t p_row) {
  functions().softmax_rows_bfloat16(x, x_row, rows, count, before, factor, to, p, p_row);
}
void divide(float* x, float divisor, std::int64_t count) { functions().divide(x, divisor, count); }
void scale(float* x, float factor, std::int64_t count) { functions().scale(x, factor, count); }
void scale_add(const float* x, float factor, float* y, std::int64_t count) {
  functions().scale_add(x, factor, y, count);
}

}  // namespace chorale::simd
#endif  // HWY_ONCE
