// Copies pages: for forks that part, and to and from the memory that preempted sequences wait in.
#include "cache_params.h"

namespace chorale::kernels {

constexpr int copy_threads = 256, copy_width = 4;  // pieces of 16 bytes that a thread has in flight

__device__ __forceinline__ void copy_page(const uint4* from, uint4* to, long long pieces) {
  for (long long first = threadIdx.x; first < pieces; first += copy_threads * copy_width) {
    uint4 x[copy_width];
#pragma unroll
    for (int i = 0; i < copy_width; ++i)
      if (first + i * copy_threads < pieces) x[i] = from[first + i * copy_threads];
#pragma unroll
    for (int i = 0; i < copy_width; ++i)
      if (first + i * copy_threads < pieces) to[first + i * copy_threads] = x[i];
  }
}

}  // namespace chorale::kernels

extern "C" __device__ const int chorale_copy_pages_threads = chorale::kernels::copy_threads;
extern "C" __device__ const int chorale_copy_pages_smem = 0;

// A block of threads takes one page of one pool at a time.
extern "C" __global__ void __launch_bounds__(chorale::kernels::copy_threads)
    chorale_copy_pages(const __grid_constant__ chorale::kernels::CopyPagesParams params) {
  using namespace chorale::kernels;
  const long long pages = static_cast<long long>(params.copy_count) * params.pool_count;
  for (long long i = blockIdx.x; i < pages; i += gridDim.x) {
    const PageCopy copy = params.copies[i % params.copy_count];
    const PagePool pool = params.pools[i / params.copy_count];
    copy_page(
        reinterpret_cast<const uint4*>(static_cast<const char*>(pool.from) + copy.from * pool.from_stride),
        reinterpret_cast<uint4*>(static_cast<char*>(pool.to) + copy.to * pool.to_stride),
        pool.page_bytes / 16);
  }
}
