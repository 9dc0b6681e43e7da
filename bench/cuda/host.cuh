// What the programs of this folder share on the host: checked calls, copies, tensor maps, numbers that are a
// function of where they stand.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "params.h"

namespace chorale::bench {

inline void check(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) ::chorale::bench::check(call, #call, __LINE__)

template <class T>
T* to_device(const std::vector<T>& host) {
  T* device = nullptr;
  CHECK(cudaMalloc(&device, std::max<std::size_t>(host.size(), 1) * sizeof(T)));
  CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

inline int multiprocessors() {
  int count = 0;
  CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

__host__ __device__ inline float uniform_at(std::uint64_t x) {  // [-1, 1)
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return static_cast<float>(static_cast<std::int32_t>(x >> 32)) * 0x1p-31f;
}
// About normal: the sum of three.
__host__ __device__ inline float bell(std::uint64_t key) {
  return uniform_at(key) + uniform_at(key ^ 0x5555555555555555ull) + uniform_at(~key);
}

// Of elements of `bytes` bytes, swizzled by 128 bytes; dimensions from the contiguous one outwards, strides
// in bytes.
inline kernels::TensorMap make_map(void* data, int bytes, const std::vector<cuuint64_t>& dims,
                                   const std::vector<cuuint64_t>& strides,
                                   const std::vector<cuuint32_t>& box) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static Encode encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult result;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &result));
    return reinterpret_cast<Encode>(f);
  }();
  const std::vector<cuuint32_t> ones(dims.size(), 1);
  kernels::TensorMap map;
  const CUresult result = encode(reinterpret_cast<CUtensorMap*>(&map),
                                 bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16,
                                 dims.size(), data, dims.data(), strides.data(), box.data(), ones.data(),
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::fprintf(stderr, "cuTensorMapEncodeTiled: %d\n", int(result));
    std::exit(1);
  }
  return map;
}

}  // namespace chorale::bench
