// Kernels that are compiled for this processor, each with its own constants. CMakeLists.txt lists them.
#pragma once

namespace emulation {

struct Kernel {
  const char* name;
  int head_dim, value_dim, group;
  bool bfloat16, fp8_cache;
  int page_size;  // 0: packed
  bool masked, scored, sinks;
  int tile, chunk, positions;
  int cluster;  // blocks of threads that share an item
  int threads;
  void (*run)(const void* params);  // what one thread does; of ForwardParams
};

}  // namespace emulation
