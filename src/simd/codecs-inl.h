// Types of elements, a vector at a time: widen(vector of bits) to float and narrow(vector of float). Compiled
// once for each instruction set.

#if defined(CHORALE_SIMD_CODECS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CHORALE_SIMD_CODECS_INL_H
#undef CHORALE_SIMD_CODECS_INL_H
#else
#define CHORALE_SIMD_CODECS_INL_H
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace chorale::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;
using Floats = hn::Vec<FloatTag>;

struct Float32Codec {
  using Bits = float;
  using DB = FloatTag;
  static HWY_INLINE Floats widen(Floats x) { return x; }
};
struct Bfloat16Codec {
  using Bits = std::uint16_t;
  using DB = hn::Rebind<Bits, FloatTag>;
  using DU = hn::RebindToUnsigned<FloatTag>;
  static HWY_INLINE Floats widen(hn::Vec<DB> x) {
    return hn::BitCast(FloatTag(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), x)));
  }
  static HWY_INLINE hn::Vec<DB> narrow(Floats x) {
    const DU du;
    const auto bits = hn::BitCast(du, x);
    const auto upper = hn::ShiftRight<16>(bits);
    const auto odd = hn::And(upper, hn::Set(du, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
    const auto nan = hn::RebindMask(du, hn::IsNaN(x));
    return hn::TruncateTo(DB(), hn::IfThenElse(nan, hn::Or(upper, hn::Set(du, 0x40)), rounded));
  }
};
struct Float16Codec {
  using Bits = std::uint16_t;
  using DB = hn::Rebind<Bits, FloatTag>;
  using DH = hn::Rebind<hwy::float16_t, FloatTag>;
  static HWY_INLINE Floats widen(hn::Vec<DB> x) { return hn::PromoteTo(FloatTag(), hn::BitCast(DH(), x)); }
  static HWY_INLINE hn::Vec<DB> narrow(Floats x) { return hn::BitCast(DB(), hn::DemoteTo(DH(), x)); }
};

// As base/float.cpp does it, all cases at once.
struct Float8E4m3Codec {
  using Bits = std::uint8_t;
  using DB = hn::Rebind<Bits, FloatTag>;
  using DU = hn::RebindToUnsigned<FloatTag>;
  static HWY_INLINE Floats widen(hn::Vec<DB> x) {
    const DU du;
    const hn::RebindToSigned<FloatTag> di;
    const auto code = hn::PromoteTo(du, x);
    const auto magnitude = hn::And(code, hn::Set(du, 0x7f));
    const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80)));
    const auto normal = hn::ShiftLeft<20>(hn::Add(magnitude, hn::Set(du, 120u << 3)));
    const auto subnormal = hn::BitCast(
        du, hn::Mul(hn::ConvertTo(FloatTag(), hn::BitCast(di, magnitude)), hn::Set(FloatTag(), 0x1p-9f)));
    const auto finite = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 8)), subnormal, normal);
    return hn::BitCast(FloatTag(), hn::Or(sign, hn::IfThenElse(hn::Eq(magnitude, hn::Set(du, 0x7f)),
                                                               hn::Set(du, 0x7fc00000), finite)));
  }
  static HWY_INLINE hn::Vec<DB> narrow(Floats x) {
    const DU du;
    const auto bits = hn::BitCast(du, x);
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffff));
    const auto sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(du, 0x80));
    const auto odd = hn::And(hn::ShiftRight<20>(magnitude), hn::Set(du, 1));
    const auto rounded = hn::Add(hn::Add(magnitude, hn::Set(du, 0x7ffff)), odd);
    const auto normal = hn::ShiftRight<20>(hn::Sub(rounded, hn::Set(du, 120u << 23)));
    const Floats shift = hn::Set(FloatTag(), 0x1p14f);
    const auto subnormal =
        hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(FloatTag(), magnitude), shift)), hn::BitCast(du, shift));
    auto code = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x3c800000)), subnormal, normal);
    code = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x43e00000)), code, hn::Set(du, 0x7e));
    code = hn::IfThenElse(hn::Gt(magnitude, hn::Set(du, 0x7f800000)), hn::Set(du, 0x7f), code);
    return hn::TruncateTo(DB(), hn::Or(sign, code));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace chorale::simd
HWY_AFTER_NAMESPACE();

#endif
