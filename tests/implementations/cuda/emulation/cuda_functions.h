// What CUDA C++ has and C++ has not, for fibers on a CPU (block.h).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "block.h"

// NOLINTBEGIN(bugprone-reserved-identifier): these are CUDA's names.
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace emulation {

template <int (*number)()>
struct Index {
  struct Number {
    operator unsigned() const { return static_cast<unsigned>(number()); }
  } x;
};
inline int thread_number() { return thread().number; }
inline int block_number() { return thread().block; }
inline int block_count() { return grid().blocks; }

}  // namespace emulation

inline emulation::Index<emulation::thread_number> threadIdx;
inline emulation::Index<emulation::block_number> blockIdx;
inline emulation::Index<emulation::block_count> gridDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;

template <class T>
std::uint64_t to_bits(T x) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
template <class T>
T from_bits(std::uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline int emulated_lane() { return emulation::thread().number % emulation::warp_threads; }
template <class T>
T __shfl_sync(unsigned, T x, int lane, int width = 32) {
  return from_bits<T>(emulation::together(to_bits(x)).value[emulated_lane() / width * width + lane % width]);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int other) {
  return from_bits<T>(emulation::together(to_bits(x)).value[emulated_lane() ^ other]);
}
template <class T>
T __shfl_up_sync(unsigned, T x, int distance) {
  const int lane = emulated_lane();
  return from_bits<T>(emulation::together(to_bits(x)).value[lane < distance ? lane : lane - distance]);
}
inline unsigned __ballot_sync(unsigned, bool x) {
  const emulation::Lanes& all = emulation::together(x);
  unsigned bits = 0;
  for (int i = 0; i < emulation::warp_threads; ++i) bits |= static_cast<unsigned>(all.value[i]) << i;
  return bits;
}
inline bool __all_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) == ~0u; }
inline bool __any_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) != 0; }
inline void __syncwarp(unsigned = ~0u) { emulation::together(0); }
inline void __syncthreads() { emulation::named_barrier(0).sync(emulation::grid().threads); }
inline void __threadfence() {}
inline int atomicAdd(int* x, int y) { return std::exchange(*x, *x + y); }
inline unsigned atomicOr(unsigned* x, unsigned y) { return std::exchange(*x, *x | y); }
template <class T>
T __ldg(const T* x) {
  return *x;
}
template <class T>
T __ldcg(const T* x) {
  return *x;
}
// The bytes of y : x that the four digits of `which` name.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
  const std::uint64_t bytes = std::uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
inline int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
inline int __clz(unsigned x) { return std::countl_zero(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline long long __mul64hi(long long x, long long y) {
  return static_cast<long long>((static_cast<__int128>(x) * y) >> 64);
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
// NOLINTEND(bugprone-reserved-identifier)
