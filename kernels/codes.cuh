// What the codes of an 8-bit cache stand for (docs/kv_cache.md), for every kernel that reads them.
#pragma once

#include "config.cuh"
#include "ptx.cuh"

namespace chorale::kernels {

__device__ __forceinline__ u32 pack(float low, float high) { return pack<Config::bfloat16>(low, high); }
// Two codes as the values they stand for.
__device__ __forceinline__ u32 decode_pair(u32 codes, float scale) {
  const float2 x = unpack_e4m3(static_cast<u16>(codes));
  return pack(__fmul_rn(x.x, scale), __fmul_rn(x.y, scale));
}

}  // namespace chorale::kernels
