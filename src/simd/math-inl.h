// Elementary functions on vectors of float32, compiled once for each instruction set. Only fused
// multiply-adds, exact bit operations and correctly rounded operations appear, so every instruction set gives
// the same bits.
//
// Coefficients are minimax fits of our own (Remez exchange in 30 digits, weighted for relative error, then
// rounded to float32); the largest errors found over many arguments are asserted in tests/simd/math_test.cpp.

#if defined(CHORALE_SIMD_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHORALE_SIMD_MATH_INL_H
#undef CHORALE_SIMD_MATH_INL_H
#else
#define CHORALE_SIMD_MATH_INL_H
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace chorale::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// coefficient[0] + x * (coefficient[1] + x * ...), highest first.
template <class D, class V, size_t N>
HWY_INLINE V polynomial(D d, V x, const float (&coefficients)[N]) {
  V sum = hn::Set(d, coefficients[N - 1]);
  for (size_t i = N - 1; i-- > 0;) sum = hn::MulAdd(sum, x, hn::Set(d, coefficients[i]));
  return sum;
}

// x * 2^n for integers n in [-300, 300], in two exact steps of half the exponent, so that subnormal results
// round once.
template <class D, class V, class VI>
HWY_INLINE V scale_by_power_of_two(D d, V x, VI n) {
  const hn::RebindToSigned<D> di;
  const VI half = hn::ShiftRight<1>(n);
  const VI bias = hn::Set(di, 127);
  const auto power = [&](VI e) { return hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(e, bias))); };
  return hn::Mul(hn::Mul(x, power(half)), power(hn::Sub(n, half)));
}

// 2^f = 1 + f P(f) for f in [-1/2, 1/2].
inline constexpr float exp2_coefficients[] = {0x1.62e43p-1f,  0x1.ebfbdcp-3f,  0x1.c6aee8p-5f,
                                              0x1.3b2d4cp-7f, 0x1.5f3e52p-10f, 0x1.41fbbcp-13f};

// 2^x for x <= 0 as softmax needs it: fewer steps, 0 below -126. NaN gives NaN.
template <class D, class V>
HWY_INLINE V exp2_of_difference(D d, V x) {
  const hn::RebindToSigned<D> di;
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits; 127 more is the exponent's
  // bias.
  const V magic = hn::Set(d, 0x1.8p23f + 127.0f);
  const V shifted = hn::Add(x, magic);
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  const V fraction = hn::MulAdd(polynomial(d, f, exp2_coefficients), f, hn::Set(d, 1.0f));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(fraction, power));
}

// e^x = 2^n e^r with r = x - n ln 2 in two parts (Cody and Waite 1980), e^r = 1 + r + r^2 P(r).
template <class D, class V>
HWY_INLINE V exp_vector(D d, V x) {
  static constexpr float coefficients[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239d4p-7f,
                                           0x1.6a244cp-10f};
  const V bounded = hn::IfThenElse(hn::Gt(x, hn::Set(d, 90.0f)), hn::Set(d, 90.0f),
                                   hn::IfThenElse(hn::Lt(x, hn::Set(d, -105.0f)), hn::Set(d, -105.0f), x));
  const V whole = hn::Round(hn::Mul(bounded, hn::Set(d, 0x1.715476p+0f)));
  V r = hn::NegMulAdd(whole, hn::Set(d, 0x1.62e4p-1f),
                      bounded);  // the first part has 15 bits: the product is exact
  r = hn::NegMulAdd(whole, hn::Set(d, 0x1.7f7d1cp-20f), r);
  const V squared = hn::Mul(r, r);
  const V fraction = hn::Add(hn::Set(d, 1.0f), hn::MulAdd(polynomial(d, r, coefficients), squared, r));
  const V y = scale_by_power_of_two(d, fraction, hn::NearestInt(whole));
  return hn::IfThenElse(hn::Eq(x, x), y, x);
}

// x + x^3 P(x^2) near 0, else 1 - 2 / (e^(2|x|) + 1) with the sign of x.
template <class D, class V>
HWY_INLINE V tanh_vector(D d, V x) {
  static constexpr float coefficients[] = {-0x1.555534p-2f, 0x1.110768p-3f, -0x1.b84448p-5f, 0x1.5256d8p-6f,
                                           -0x1.76ac1ap-8f};
  const V magnitude = hn::Abs(x);
  const V squared = hn::Mul(x, x);
  const V small = hn::MulAdd(hn::Mul(polynomial(d, squared, coefficients), squared), x, x);
  const V e = exp_vector(d, hn::Add(magnitude, magnitude));
  const V one = hn::Set(d, 1.0f);
  const V large = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, hn::CopySign(large, x));
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = r - r^2/2 + r^3 P(r), r = m - 1.
template <class D, class V>
HWY_INLINE V log_vector(D d, V x) {
  static constexpr float coefficients[] = {0x1.555548p-2f,  -0x1.000006p-2f, 0x1.99a4b6p-3f,
                                           -0x1.555c4ep-3f, 0x1.233768p-3f,  -0x1.fc220ap-4f,
                                           0x1.e6f06ap-4f,  -0x1.de3c04p-4f, 0x1.145796p-4f};
  const hn::RebindToSigned<D> di;
  const auto subnormal = hn::Lt(x, hn::Set(d, 0x1p-126f));
  const V normal = hn::IfThenElse(subnormal, hn::Mul(x, hn::Set(d, 0x1p23f)), x);
  const auto bits = hn::BitCast(di, normal);
  // Adding the distance from sqrt(1/2) to 1 moves the boundary between exponents to sqrt(1/2).
  const auto shifted = hn::Add(bits, hn::Set(di, 0x3f800000 - 0x3f3504f3));
  const auto exponent = hn::Sub(hn::ShiftRight<23>(shifted), hn::Set(di, 127));
  const V m = hn::BitCast(d, hn::Add(hn::And(shifted, hn::Set(di, 0x007fffff)), hn::Set(di, 0x3f3504f3)));
  const V e = hn::Sub(hn::ConvertTo(d, exponent), hn::IfThenElseZero(subnormal, hn::Set(d, 23.0f)));
  const V r = hn::Sub(m, hn::Set(d, 1.0f));
  const V squared = hn::Mul(r, r);
  V y = hn::Mul(hn::Mul(polynomial(d, r, coefficients), squared), r);
  y = hn::MulAdd(e, hn::Set(d, 0x1.7f7d1cp-20f), y);
  y = hn::MulAdd(hn::Set(d, -0.5f), squared, y);
  y = hn::MulAdd(e, hn::Set(d, 0x1.62e4p-1f), hn::Add(r, y));
  const V infinity = hn::Set(d, __builtin_inff());
  y = hn::IfThenElse(hn::Eq(x, infinity), infinity, y);
  y = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Neg(infinity), y);
  return hn::IfThenElse(hn::Ge(x, hn::Zero(d)), y, hn::Set(d, __builtin_nanf("")));
}

// To the nearest bfloat16, as base/float.h rounds; NaN stays NaN.
template <class D, class V>
HWY_INLINE V round_to_bfloat16(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto nearest = hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd);
  const auto nan = hn::RebindMask(du, hn::IsNaN(x));
  const auto chosen = hn::IfThenElse(nan, hn::Or(bits, hn::Set(du, 0x400000)), nearest);
  return hn::BitCast(d, hn::And(chosen, hn::Set(du, 0xffff0000u)));
}

}  // namespace HWY_NAMESPACE
}  // namespace chorale::simd
HWY_AFTER_NAMESPACE();

#endif
