// A GPU that is no GPU: libcuda.so.1 and NVRTC in one library for machines without a card. Device memory is
// host memory, a launch calls a function of the test's, and a captured graph is a list of what was called.
// With it the whole host side runs: plans, uploads, graphs, launch parameters.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace chorale::testing {

// What the fake's tensor maps hold.
struct FakeTensorMap {
  const std::byte* address;
  std::uint64_t sizes[5], strides[5];  // strides in bytes; the first is an element's size
  std::uint32_t box[5];
  std::uint32_t rank, type;
};

// Called for every launch: the entry point, the source that was compiled, and the kernel's argument.
using FakeLaunch = std::function<void(const std::string& entry, const std::string& source, int blocks,
                                      const void* parameters)>;
void set_fake_launch(FakeLaunch launch);

// The entry points of the launches since the last call (fake_kernels.cpp).
std::vector<std::string> taken_launches();

}  // namespace chorale::testing
