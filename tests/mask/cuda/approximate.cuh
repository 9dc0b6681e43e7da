// The place of kernels/approximate.cuh, and of CUDA itself, when emitted programs are compiled for the host.
#ifndef CHORALE_APPROXIMATE
#define CHORALE_APPROXIMATE

#include <bit>
#include <cmath>
#include <cstdint>

#define __device__
#define __forceinline__ inline

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __int_as_float(std::uint32_t x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) {
  return std::isnan(x) ? 0 : static_cast<int>(x);
}  // of whole numbers only
inline int __clz(int x) { return std::countl_zero(static_cast<std::uint32_t>(x)); }
inline long long __mul64hi(long long x, long long y) {
  return static_cast<long long>((static_cast<__int128>(x) * y) >> 64);
}
template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

namespace chorale::kernels::program {
inline float approximate_exp2(float x) { return std::exp2(x); }
inline float approximate_reciprocal(float x) { return 1 / x; }
}  // namespace chorale::kernels::program

#endif
