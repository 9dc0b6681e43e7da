// A block of threads on a CPU: each thread of the kernel is a fiber, a random warp goes on, and its lanes run
// until they wait. What a kernel must not count on does not happen: copies arrive late, and until then their
// place holds NaN; products are made, and stores of the copy engine read, when they are waited for, of what
// is in shared memory then; what such a store writes is written at the end, in any order, if nobody waits for
// it.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace emulation {

constexpr int warp_threads = 32, shared_bytes = 227 << 10;

struct Thread {
  int number = 0;
  bool ended = false;
  // Of the copy engine: to be read, which gives what is to be written.
  std::vector<std::function<std::function<void()>()>> unread;
  std::vector<std::function<void()>> unwritten;
};

// Of the fiber that runs.
Thread& thread();

// Lets another go on until `ready`, which has no effects.
void wait_until(const std::function<bool()>& ready);
// All lanes of the warp come to this place: each leaves `value` and sees the others'.
struct Lanes {
  std::uint64_t value[warp_threads];
};
Lanes exchange(std::uint64_t value);
// bar.sync and bar.arrive; 0 is __syncthreads().
struct NamedBarrier {
  int arrived = 0;
  unsigned phase = 0;
  void arrive(int threads) {
    if (++arrived < threads) return;
    arrived = 0;
    ++phase;
  }
  void sync(int threads) {
    const unsigned before = phase;
    arrive(threads);
    wait_until([&] { return phase != before; });
  }
};
NamedBarrier& named_barrier(int id);
// Is done some time later, in order of asking.
void do_later(std::function<void()> work);

// Runs `kernel` as one block. False, with what everybody waited for in `problem`, if nobody can go on.
bool run_block(int threads, std::uint64_t seed, const std::function<void()>& kernel, std::string* problem);

}  // namespace emulation
