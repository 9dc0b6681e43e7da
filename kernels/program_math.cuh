// What emitted programs are made of: the arithmetic of mask and score programs (chorale/mask.h), at a point
// and over intervals. `int` where the host has shown that nothing overflows, else `long long`, which
// saturates. Every rounding is written, so that the compiler has no say in it.
#pragma once

#include "approximate.cuh"
#include "params.h"

namespace chorale::kernels::program {

using Long = long long;

// ---- Integers. Division rounds down; by zero it gives 0.

constexpr Long most_long = 0x7fffffffffffffffLL;
constexpr Long least_long = -most_long - 1;

__device__ __forceinline__ Long saturate(unsigned long long wrapped, unsigned long long overflow,
                                         unsigned long long x) {
  return overflow >> 63 ? (x >> 63 ? least_long : most_long) : Long(wrapped);
}
__device__ __forceinline__ int add(int x, int y) { return x + y; }
__device__ __forceinline__ Long add(Long x, Long y) {
  const unsigned long long a = x, b = y, sum = a + b;
  return saturate(sum, (a ^ sum) & (b ^ sum), a);
}
__device__ __forceinline__ int subtract(int x, int y) { return x - y; }
__device__ __forceinline__ Long subtract(Long x, Long y) {
  const unsigned long long a = x, b = y, difference = a - b;
  return saturate(difference, (a ^ b) & (a ^ difference), a);
}
__device__ __forceinline__ int multiply(int x, int y) { return x * y; }
__device__ __forceinline__ Long multiply(Long x, Long y) {
  const Long low = Long((unsigned long long)x * (unsigned long long)y);
  if (__mul64hi(x, y) == low >> 63) return low;
  return (x < 0) == (y < 0) ? most_long : least_long;
}
__device__ __forceinline__ int negate(int x) { return -x; }
__device__ __forceinline__ Long negate(Long x) { return x == least_long ? most_long : -x; }

template <class Number>
__device__ __forceinline__ Number absolute(Number x) {
  return x < 0 ? negate(x) : x;
}
template <class Number>
__device__ __forceinline__ Number floor_divide(Number x, Number y) {
  if (y == 0) return 0;
  if (y == -1) return subtract(Number(0), x);
  const Number quotient = x / y;
  return x - quotient * y != 0 && (x < 0) != (y < 0) ? quotient - 1 : quotient;
}
template <class Number>
__device__ __forceinline__ Number floor_modulo(Number x, Number y) {  // has the sign of y
  if (y == 0 || y == -1) return 0;
  const Number remainder = x % y;
  return remainder != 0 && (remainder < 0) != (y < 0) ? remainder + y : remainder;
}
// For NaN these give the first operand.
template <class Number>
__device__ __forceinline__ Number minimum(Number x, Number y) {
  return y < x ? y : x;
}
template <class Number>
__device__ __forceinline__ Number maximum(Number x, Number y) {
  return x < y ? y : x;
}

// ---- Floats: the steps of src/simd/math-inl.h, hence the bits of masks on the CPU.

// x * 2^n for n in [-300, 300], in two steps, so that subnormal results round once.
__device__ __forceinline__ float scale_by_power_of_two(float x, int n) {
  const int half = n >> 1;
  return __fmul_rn(__fmul_rn(x, __int_as_float((half + 127) << 23)), __int_as_float((n - half + 127) << 23));
}

// e^x = 2^n e^r, r = x - n ln 2 in two parts.
__device__ __forceinline__ float exp(float x) {
  const float bounded = x > 90.0f ? 90.0f : x < -105.0f ? -105.0f : x;
  const float whole = rintf(__fmul_rn(bounded, 0x1.715476p+0f));
  float r = __fmaf_rn(-whole, 0x1.62e4p-1f, bounded);
  r = __fmaf_rn(-whole, 0x1.7f7d1cp-20f, r);
  float p = 0x1.6a244cp-10f;
  p = __fmaf_rn(p, r, 0x1.1239d4p-7f);
  p = __fmaf_rn(p, r, 0x1.5558f2p-5f);
  p = __fmaf_rn(p, r, 0x1.555492p-3f);
  p = __fmaf_rn(p, r, 0x1.fffffcp-2f);
  const float fraction = __fadd_rn(1.0f, __fmaf_rn(p, __fmul_rn(r, r), r));
  const float y = scale_by_power_of_two(fraction, __float2int_rn(whole));
  return x == x ? y : x;
}

__device__ __forceinline__ float tanh(float x) {
  const float magnitude = fabsf(x), squared = __fmul_rn(x, x);
  if (magnitude < 0.625f) {
    float p = -0x1.76ac1ap-8f;
    p = __fmaf_rn(p, squared, 0x1.5256d8p-6f);
    p = __fmaf_rn(p, squared, -0x1.b84448p-5f);
    p = __fmaf_rn(p, squared, 0x1.110768p-3f);
    p = __fmaf_rn(p, squared, -0x1.555534p-2f);
    return __fmaf_rn(__fmul_rn(p, squared), x, x);
  }
  const float e = exp(__fadd_rn(magnitude, magnitude));
  return copysignf(__fsub_rn(1.0f, __fdiv_rn(2.0f, __fadd_rn(e, 1.0f))), x);
}

// x = m 2^e, m in [sqrt(1/2), sqrt(2)); ln m = r - r^2/2 + r^3 P(r), r = m - 1.
__device__ __forceinline__ float log(float x) {
  const bool subnormal = x < 0x1p-126f;
  const auto bits = static_cast<unsigned>(__float_as_int(subnormal ? __fmul_rn(x, 0x1p23f) : x));
  const int shifted =
      static_cast<int>(bits + (0x3f800000u - 0x3f3504f3u));  // wraps for NaN, which is handled below
  const float m = __int_as_float((shifted & 0x007fffff) + 0x3f3504f3);
  const float e = __fsub_rn(__int2float_rn((shifted >> 23) - 127), subnormal ? 23.0f : 0.0f);
  const float r = __fsub_rn(m, 1.0f), squared = __fmul_rn(r, r);
  float p = 0x1.145796p-4f;
  p = __fmaf_rn(p, r, -0x1.de3c04p-4f);
  p = __fmaf_rn(p, r, 0x1.e6f06ap-4f);
  p = __fmaf_rn(p, r, -0x1.fc220ap-4f);
  p = __fmaf_rn(p, r, 0x1.233768p-3f);
  p = __fmaf_rn(p, r, -0x1.555c4ep-3f);
  p = __fmaf_rn(p, r, 0x1.99a4b6p-3f);
  p = __fmaf_rn(p, r, -0x1.000006p-2f);
  p = __fmaf_rn(p, r, 0x1.555548p-2f);
  float y = __fmul_rn(__fmul_rn(p, squared), r);
  y = __fmaf_rn(e, 0x1.7f7d1cp-20f, y);
  y = __fmaf_rn(-0.5f, squared, y);
  y = __fmaf_rn(e, 0x1.62e4p-1f, __fadd_rn(r, y));
  const float infinity = __int_as_float(0x7f800000);
  return x == infinity ? infinity : x == 0 ? -infinity : x > 0 ? y : __int_as_float(0x7fc00000);
}

// For scores: cap tanh(x factor) as cap (1 - 2 / (1 + e^2x)), off by 2e-7 of the cap at most.
__device__ __forceinline__ float fast_cap(float x, float factor, float cap) {
  const float e = approximate_exp2(__fmul_rn(x, __fmul_rn(factor, 0x1.715476p+1f)));
  return __fmaf_rn(__fmul_rn(-2.0f, cap), approximate_reciprocal(__fadd_rn(e, 1.0f)), cap);
}
__device__ __forceinline__ float fast_tanh(float x) { return fast_cap(x, 1.0f, 1.0f); }

// ---- Tables. Outside of a table its edge is read, so that positions beyond a sequence's end do no harm.

__device__ __forceinline__ int clamp(Long i, int size) {
  return int(maximum(Long(0), minimum(i, Long(size) - 1)));
}
__device__ __forceinline__ int clamp(int i, int size) { return maximum(0, minimum(i, size - 1)); }
template <class Value>
__device__ __forceinline__ const Value* pointer(const void* const& field) {
  return (const Value*)__ldg((const unsigned long long*)&field);
}

template <class Value, class Index>
__device__ __forceinline__ Value load(const TableView& table, Index column) {
  return __ldg(pointer<Value>(table.values) + clamp(column, __ldg(&table.columns)));
}
template <class Value, class Row, class Column>
__device__ __forceinline__ Value load(const TableView& table, Row row, Column column) {
  const int columns = __ldg(&table.columns);
  return __ldg(pointer<Value>(table.values) + Long(clamp(row, __ldg(&table.rows))) * columns +
               clamp(column, columns));
}

// ---- Intervals: what a value can be somewhere in a box; both ends included. The forward rules of
// src/mask/bounds.cpp, so a value that is in `int` at every point of every box stays in it here.

template <class T>
struct Interval {
  T least, most;
};
struct Truth {
  bool least, most;
};

__device__ __forceinline__ Interval<Long> widen(Interval<int> x) { return {x.least, x.most}; }
__device__ __forceinline__ Interval<Long> widen(Interval<Long> x) { return x; }
__device__ __forceinline__ Interval<int> narrow(Interval<Long> x) { return {int(x.least), int(x.most)}; }

template <class T>
__device__ __forceinline__ Interval<T> hull(Interval<T> x, Interval<T> y) {
  return {minimum(x.least, y.least), maximum(x.most, y.most)};
}
template <class T>
__device__ __forceinline__ Interval<T> add(Interval<T> x, Interval<T> y) {
  return {add(x.least, y.least), add(x.most, y.most)};
}
template <class T>
__device__ __forceinline__ Interval<T> subtract(Interval<T> x, Interval<T> y) {
  return {subtract(x.least, y.most), subtract(x.most, y.least)};
}
template <class T>
__device__ __forceinline__ Interval<T> negate(Interval<T> x) {
  return {negate(x.most), negate(x.least)};
}
template <class T>
__device__ __forceinline__ Interval<T> minimum(Interval<T> x, Interval<T> y) {
  return {minimum(x.least, y.least), minimum(x.most, y.most)};
}
template <class T>
__device__ __forceinline__ Interval<T> maximum(Interval<T> x, Interval<T> y) {
  return {maximum(x.least, y.least), maximum(x.most, y.most)};
}
template <class T>
__device__ __forceinline__ Interval<T> absolute(Interval<T> x) {
  const T least = absolute(x.least), most = absolute(x.most);
  return {x.least <= 0 && x.most >= 0 ? T(0) : minimum(least, most), maximum(least, most)};
}
template <class T>
__device__ __forceinline__ Interval<T> corners(T a, T b, T c, T d) {
  return {minimum(minimum(a, b), minimum(c, d)), maximum(maximum(a, b), maximum(c, d))};
}
template <class T>
__device__ __forceinline__ Interval<T> multiply(Interval<T> x, Interval<T> y) {
  return corners(multiply(x.least, y.least), multiply(x.least, y.most), multiply(x.most, y.least),
                 multiply(x.most, y.most));
}
template <class T>
__device__ __forceinline__ Interval<T> divide_by_one_sign(Interval<T> x, T first, T last) {
  return corners(floor_divide(x.least, first), floor_divide(x.least, last), floor_divide(x.most, first),
                 floor_divide(x.most, last));
}
template <class T>
__device__ __forceinline__ Interval<T> floor_divide(Interval<T> x, Interval<T> y) {
  Interval<T> result = {0, 0};
  bool any = y.least <= 0 && y.most >= 0;
  if (y.least < 0) {
    const Interval<T> negative = divide_by_one_sign(x, y.least, minimum(y.most, T(-1)));
    result = any ? hull(result, negative) : negative;
    any = true;
  }
  if (y.most > 0) {
    const Interval<T> positive = divide_by_one_sign(x, maximum(y.least, T(1)), y.most);
    result = any ? hull(result, positive) : positive;
  }
  return result;
}
template <class T>
__device__ __forceinline__ Interval<T> floor_modulo(Interval<T> x, Interval<T> y) {
  // While the quotient stays, the remainder rises with x.
  if (y.least == y.most && floor_divide(x.least, y.least) == floor_divide(x.most, y.least))
    return {floor_modulo(x.least, y.least), floor_modulo(x.most, y.least)};
  if (x.least >= 0 && x.most < y.least) return x;
  Interval<T> result = {y.least < 0 ? y.least + 1 : T(0), y.most > 0 ? y.most - 1 : T(0)};
  if (x.least >= 0 && y.least > 0) result.most = minimum(result.most, x.most);
  return result;
}

template <class T>
__device__ __forceinline__ Truth less(Interval<T> x, Interval<T> y) {
  return {x.most < y.least, x.least < y.most};
}
template <class T>
__device__ __forceinline__ Truth less_equal(Interval<T> x, Interval<T> y) {
  return {x.most <= y.least, x.least <= y.most};
}
template <class T>
__device__ __forceinline__ Truth equal(Interval<T> x, Interval<T> y) {
  return {x.least == x.most && y.least == y.most && x.least == y.least,
          x.least <= y.most && y.least <= x.most};
}
__device__ __forceinline__ Truth logical_and(Truth x, Truth y) {
  return {x.least && y.least, x.most && y.most};
}
__device__ __forceinline__ Truth logical_or(Truth x, Truth y) {
  return {x.least || y.least, x.most || y.most};
}
__device__ __forceinline__ Truth logical_not(Truth x) { return {!x.most, !x.least}; }
__device__ __forceinline__ Truth equal(Truth x, Truth y) {
  const bool known = x.least == x.most && y.least == y.most;
  return {known && x.least == y.least, !known || x.least == y.least};
}
template <class T>
__device__ __forceinline__ Interval<T> select(Truth condition, Interval<T> x, Interval<T> y) {
  return condition.least ? x : condition.most ? hull(x, y) : y;
}
__device__ __forceinline__ Truth select(Truth condition, Truth x, Truth y) {
  if (condition.least) return x;
  if (!condition.most) return y;
  return {x.least && y.least, x.most || y.most};
}

// Least and most of a range of a table's row. Every row has a binary tree: its leaves are groups of 8 values
// at [leaves, 2 leaves), node n stands for nodes 2n and 2n + 1. A range is covered by three nodes of one
// level, which widens it by less than its own length (by nothing where both ends lie on that level's
// boundaries).
constexpr int leaf_values = 8;
__device__ __forceinline__ Interval<int> row_extent(const TableView& table, int row, int first, int last) {
  const int columns = __ldg(&table.columns);
  if (first == last) {
    const int value = __ldg(pointer<int>(table.values) + Long(row) * columns + first);
    return {value, value};
  }
  const int groups = (columns + leaf_values - 1) / leaf_values;
  const int leaves = groups == 1 ? 1 : 1 << (32 - __clz(groups - 1));
  first /= leaf_values, last /= leaf_values;
  const int level = first == last ? 0 : 31 - __clz(last - first);
  const int from = (leaves + first) >> level, to = (leaves + last) >> level;
  const Long base = 2 * Long(leaves) * row;
  const int* tree = pointer<int>(table.extremes);
  const auto node = [&](int i) {
    return Interval<int>{__ldg(tree + 2 * (base + i)), __ldg(tree + 2 * (base + i) + 1)};
  };
  return hull(hull(node(from), node(minimum(from + 1, to))), node(to));
}

template <class T>
__device__ __forceinline__ Interval<int> extent(const TableView& table, Interval<T> columns) {
  const int size = __ldg(&table.columns);
  return row_extent(table, 0, clamp(columns.least, size), clamp(columns.most, size));
}
template <class R, class C>
__device__ __forceinline__ Interval<int> extent(const TableView& table, Interval<R> rows,
                                                Interval<C> columns) {
  constexpr int most_rows = 16;  // more are not looked at, and anything may be
  const int row_size = __ldg(&table.rows), column_size = __ldg(&table.columns);
  const int first_row = clamp(rows.least, row_size), last_row = clamp(rows.most, row_size);
  const int first = clamp(columns.least, column_size), last = clamp(columns.most, column_size);
  if (last_row - first_row >= most_rows) return {int(0x80000000), 0x7fffffff};
  Interval<int> result = row_extent(table, first_row, first, last);
  for (int row = first_row + 1; row <= last_row; ++row)
    result = hull(result, row_extent(table, row, first, last));
  return result;
}

}  // namespace chorale::kernels::program
