// A GPU that is no GPU: libcuda.so.1 and NVRTC in one library for machines without a card. Device memory is
// host memory, a launch calls a function of the test's, and a captured graph is a list of what was called.
// With it the whole host side runs: plans, uploads, graphs, launch parameters.
//
// It is late: what streams have to do is begun when somebody waits for one of them, a step of each in turn,
// so that launches of several streams are under way at once. And it is strict about what a thread may not do
// while it captures.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
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

// Called when a launch begins: the entry point, the source that was compiled, and the kernel's argument. What
// it returns is called when the launch ends.
using FakeLaunchEnd = std::function<void()>;
using FakeLaunch = std::function<FakeLaunchEnd(const std::string& entry, const std::string& source,
                                               int blocks, const void* parameters)>;
void set_fake_launch(FakeLaunch launch);
// The block of device memory that an address lies in; null: none, or it is freed.
const void* fake_memory_of(const void* address);

// The launches since the last call (fake_kernels.cpp): entry points, and the plan's memory that they write.
struct FakeLaunched {
  std::string entry;
  std::set<const void*> written;
};
std::vector<FakeLaunched> taken_launches();

}  // namespace chorale::testing
