// From a key to a kernel's machine code.
#pragma once

#include "implementations/cuda/kernel_cache.h"
#include "implementations/cuda/kernel_key.h"

namespace chorale::cuda {

// What kernels are compiled for where there is no card to ask. Most Hopper cards have so many
// multiprocessors: on others a plan may want another decode kernel.
inline constexpr const char* hopper = "sm_90a";
inline constexpr int hopper_multiprocessors = 132;

// From the cache, or by NVRTC. Needs no GPU.
Result<CompiledKernel> compile_kernel(const KernelKey& key, const std::string& arch,
                                      const KernelCache& cache);

// How an entry point is launched, as its source says.
struct LaunchShape {
  int threads = 0;
  int shared_bytes = 0;   // dynamic
  bool overlaps = false;  // begins before the launch before it has ended, and waits for that itself
  int cluster = 1;        // blocks of threads that see each other's shared memory
};
Result<LaunchShape> launch_shape(const KernelKey& key, const CompiledKernel& kernel);

}  // namespace chorale::cuda
