// New keys and values go to their slots in the pages, as the CPU's store does it (docs/kv_cache.md).
#include "cache_params.h"
#include "config.cuh"
#include "ptx.cuh"

namespace chorale::kernels {

constexpr int store_threads = 256, store_width = 8;  // elements that a thread takes at once

// code = e4m3(x / scale); NaN keeps its sign.
__device__ __forceinline__ u32 quantise_pair(u32 pair, float scale) {
  const u16 low = static_cast<u16>(pair), high = static_cast<u16>(pair >> 16);
  const float x = Config::bfloat16 ? bfloat16_to_float(low) : float16_to_float(low);
  const float y = Config::bfloat16 ? bfloat16_to_float(high) : float16_to_float(high);
  u32 codes = pack_e4m3(__fdiv_rn(x, scale), __fdiv_rn(y, scale));
  if (x != x) codes = (codes & 0xff00u) | 0x7fu | (low >> 15 << 7);
  if (y != y) codes = (codes & 0x00ffu) | 0x7f00u | (high >> 15 << 15);
  return codes;
}

__device__ __forceinline__ void store_elements(void* to, const uint4& x, float scale) {
  if constexpr (Config::fp8_cache) {
    *static_cast<uint2*>(to) = {quantise_pair(x.x, scale) | quantise_pair(x.y, scale) << 16,
                                quantise_pair(x.z, scale) | quantise_pair(x.w, scale) << 16};
  } else {
    *static_cast<uint4*>(to) = x;
  }
}

// All rows of one tensor. Threads run along a row first, then heads, then tokens.
template <int dim>
__device__ __forceinline__ void store_rows(const Rows& rows, const Rows& cache, long long page_stride,
                                           const float* scales, const StoreParams& params) {
  constexpr int row_parts = dim / store_width, element_bytes = Config::fp8_cache ? 1 : 2;
  const long long parts = static_cast<long long>(params.tokens) * params.kv_heads * row_parts;
  const long long step = static_cast<long long>(gridDim.x) * store_threads;
  for (long long i = static_cast<long long>(blockIdx.x) * store_threads + threadIdx.x; i < parts; i += step) {
    const int column = static_cast<int>(i % row_parts) * store_width;
    const long long row = i / row_parts;
    const int head = static_cast<int>(row % params.kv_heads);
    const long long token = row / params.kv_heads, slot = params.slots[token];
    if (slot < 0) continue;
    const u16* from =
        static_cast<const u16*>(rows.data) + token * rows.token_stride + head * rows.head_stride + column;
    const long long at = slot / Config::page_size * page_stride +
                         slot % Config::page_size * cache.token_stride + head * cache.head_stride + column;
    store_elements(static_cast<char*>(cache.data) + at * element_bytes, *reinterpret_cast<const uint4*>(from),
                   Config::fp8_cache ? scales[head] : 1.f);
  }
}

}  // namespace chorale::kernels

extern "C" __device__ const int chorale_store_threads = chorale::kernels::store_threads;
extern "C" __device__ const int chorale_store_smem = 0;

extern "C" __global__ void __launch_bounds__(chorale::kernels::store_threads)
    chorale_store(const __grid_constant__ chorale::kernels::StoreParams params) {
  using namespace chorale::kernels;
  store_rows<Config::head_dim>(params.k, params.k_cache, params.k_page_stride, params.k_scale, params);
  store_rows<Config::value_dim>(params.v, params.v_cache, params.v_page_stride, params.v_scale, params);
}
