// Blocks of threads on a CPU: each thread of the kernel is a fiber, a random warp of a random block goes on,
// and its lanes, or some of them, run until they wait or meet the others. What a kernel must not count on
// does not happen: copies arrive late and in any order, and until then their place holds NaN; products are
// made, and stores of the copy engine read, when they are waited for, of what is in shared memory then; what
// such a store writes is written at the end, in any order, if nobody waits for it; what is stored to another
// block of a cluster arrives late, too; and only some clusters run at once.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

namespace emulation {

constexpr int warp_threads = 32, shared_bytes = 227 << 10;
using Work = std::function<void()>;

struct Grid {
  int threads = warp_threads;  // of a block
  int blocks = 1;
  int cluster = 1;  // blocks that run together and write to each other's shared memory
};
const Grid& grid();  // that runs

struct Thread {
  int number = 0, block = 0;
  bool ended = false;
  // Of the copy engine: to be read, which gives what is to be written.
  std::vector<std::function<Work()>> unread;
  std::vector<Work> unwritten;
  std::vector<Work> copies;    // cp.async that no barrier waits for yet
  std::vector<Work> products;  // wgmma: asked for, and committed
  std::deque<std::vector<Work>> product_groups;
};
Thread& thread();  // that runs

// A number says where in which block's shared memory something lies.
constexpr unsigned block_stride = 256 << 10;
unsigned shared_address(const void* pointer);
unsigned char* shared_place(unsigned address);  // of any block that runs
unsigned char* own_place(unsigned address);     // of the block of the thread that runs
unsigned char* shared_memory();                 // all of that

// The kernel fails, unless `right`: nothing runs any more.
void require(bool right, const char* what);

// Others may go on here: what a thread does after it has arrived somewhere may be late.
void pause();
// Lets others go on until `ready`, which has no effects.
void wait_until(const std::function<bool()>& ready);
// All lanes of the warp come to this place: each leaves `value` and sees the others', until it meets them
// again. The last to come works for all.
struct Lanes {
  std::uint64_t value[warp_threads];
};
using WarpWork = void (*)(const Lanes&);
const Lanes& together(std::uint64_t value, WarpWork work = nullptr);

// bar.sync and bar.arrive; 0 is __syncthreads().
struct NamedBarrier {
  int arrived = 0;
  unsigned phase = 0;
  void arrive(int threads);
  void sync(int threads);
};
NamedBarrier& named_barrier(int id);
void cluster_sync();

// Is done some time later.
void do_later(Work work);

// Runs `kernel` on a grid; the seed decides who goes on. Says what went wrong, or nothing.
std::string run_grid(const Grid& grid, std::uint64_t seed, const std::function<void()>& kernel);

}  // namespace emulation
