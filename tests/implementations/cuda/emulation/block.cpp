#include "block.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <random>

// What a function may count on is pushed and its stack pointer left in *from; the same in reverse for `to`.
// (swapcontext() asks the operating system for its signals, which takes longer than all that runs between.)
extern "C" void emulation_switch(void** from, void* to);
asm(R"(
.text
.globl emulation_switch
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emulation {
namespace {

constexpr std::size_t stack_bytes = 128 << 10;
constexpr int saved_registers = 6;

using Stack = std::unique_ptr<unsigned char[]>;
std::vector<Stack> free_stacks;

struct Fiber : Thread {
  Stack stack;
  void* stack_pointer = nullptr;
  const std::function<bool()>* waits_for = nullptr;
};
struct Warp {
  Lanes lanes[2];  // of this meeting and the one before
  int arrived = 0;
  unsigned meetings = 0;
  std::uint32_t quick = ~0u;  // lanes; others go on when nobody else can
};
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::array<NamedBarrier, 16> barriers;
  bool has_begun = false;
  int live = 0;  // threads
  std::discrete_distribution<std::size_t> next_warp;
};
struct Cluster {
  std::vector<Block> blocks;
  double weight = 1;
  int first_block = 0;
  int live = 0;  // threads
  int arrived = 0;
  unsigned phase = 0;
  void end_phase_if_complete() {  // threads that have ended do not count
    if (live == 0 || arrived < live) return;
    arrived = 0;
    ++phase;
  }
};

struct Running {
  Grid grid;
  const std::function<void()>* kernel = nullptr;
  std::vector<std::unique_ptr<Cluster>> clusters;  // null: has not begun, or has ended
  std::vector<Work> later;
  std::vector<Work> at_end;
  std::mt19937_64 random;
  void* scheduler = nullptr;
  Fiber* fiber = nullptr;  // null: the scheduler runs
  std::string problem;
  unsigned char* shared = nullptr;

  Cluster* cluster_of(int block) const {
    return clusters[static_cast<std::size_t>(block / grid.cluster)].get();
  }
  Block* block(int number) const {
    Cluster* cluster = cluster_of(number);
    return cluster == nullptr ? nullptr : &cluster->blocks[static_cast<std::size_t>(number % grid.cluster)];
  }
};
Running* running = nullptr;

void leave_fiber() { emulation_switch(&running->fiber->stack_pointer, running->scheduler); }

void enter_fiber() {
  (*running->kernel)();
  Fiber& self = *running->fiber;
  self.ended = true;
  Cluster& cluster = *running->cluster_of(self.block);
  --running->block(self.block)->live;
  --cluster.live;
  cluster.end_phase_if_complete();
  leave_fiber();
}

void begin(Fiber& fiber, int block, int number) {
  fiber.block = block;
  fiber.number = number;
  if (free_stacks.empty()) free_stacks.push_back(Stack(new unsigned char[stack_bytes]));
  fiber.stack = std::move(free_stacks.back());
  free_stacks.pop_back();
  auto top = reinterpret_cast<std::uintptr_t>(fiber.stack.get() + stack_bytes) / 16 * 16;
  auto* words = reinterpret_cast<void**>(top) - 2;
  words[0] = reinterpret_cast<void*>(enter_fiber);
  fiber.stack_pointer = words - saved_registers;
}

// Lets a fiber go on until it waits. False: it waits still.
bool go_on(Fiber& fiber) {
  if (fiber.ended || (fiber.waits_for != nullptr && !(*fiber.waits_for)())) return false;
  fiber.waits_for = nullptr;
  running->fiber = &fiber;
  emulation_switch(&running->scheduler, fiber.stack_pointer);
  running->fiber = nullptr;
  return true;
}

// Tests take 12,000 or fewer.
constexpr int most_rounds = 1 << 18;

class Scheduler {
 public:
  explicit Scheduler(Running& now)
      : now_(now),
        most_at_once_(1 + now.random() % now.clusters.size()),
        later_one_in_(std::array{2u, 20u, 1000u}[now.random() % 3]) {}

  void run() {
    for (int round = 0; now_.problem.empty(); ++round) {
      end_clusters();
      begin_clusters();
      if (at_once_.empty()) break;
      if (round == most_rounds) now_.problem = "does not end";
      if (!run_some() && !run_any()) now_.problem = "waiting for ever:" + who_waits();
    }
  }

 private:
  // How often one of several goes on; some hardly do while others can.
  double weight() { return std::array<double, 4>{.01, 1, 5, 25}[now_.random() % 4]; }

  void begin_clusters() {
    for (; at_once_.size() < most_at_once_ && next_ < now_.clusters.size(); ++next_) {
      auto cluster = std::make_unique<Cluster>();
      cluster->weight = weight();
      cluster->first_block = static_cast<int>(next_) * now_.grid.cluster;
      cluster->live = now_.grid.threads * now_.grid.cluster;
      cluster->blocks = std::vector<Block>(static_cast<std::size_t>(now_.grid.cluster));
      for (int i = 0; i < now_.grid.cluster; ++i)
        begin_block(cluster->blocks[static_cast<std::size_t>(i)], cluster->first_block + i);
      at_once_.push_back(cluster.get());
      now_.clusters[next_] = std::move(cluster);
    }
  }
  void begin_block(Block& block, int number) {
    block.live = now_.grid.threads;
    block.fibers = std::vector<Fiber>(static_cast<std::size_t>(now_.grid.threads));
    for (int i = 0; i < now_.grid.threads; ++i) begin(block.fibers[static_cast<std::size_t>(i)], number, i);
    block.warps.resize(static_cast<std::size_t>(now_.grid.threads / warp_threads));
    draw_warps(block);
  }
  void draw_warps(Block& block) {
    std::vector<double> weights(block.warps.size());
    std::ranges::generate(weights, [&] { return weight(); });
    block.next_warp = {weights.begin(), weights.end()};
    for (Warp& warp : block.warps) warp.quick = ~0u;
    if (now_.random() % 2 == 0) block.warps[now_.random() % block.warps.size()].quick = some_lanes();
  }
  std::uint32_t some_lanes() { return static_cast<std::uint32_t>(now_.random() >> 32); }
  // Whoever was quick may be slow from now on.
  void draw_again() {
    Cluster& cluster = *at_once_[now_.random() % at_once_.size()];
    cluster.weight = weight();
    draw_warps(cluster.blocks[now_.random() % cluster.blocks.size()]);
  }
  void end_clusters() {
    std::erase_if(at_once_, [&](Cluster* cluster) {
      if (cluster->live > 0) return false;
      for (Block& block : cluster->blocks)
        for (Fiber& fiber : block.fibers) {
          free_stacks.push_back(std::move(fiber.stack));
          std::ranges::move(fiber.unwritten, std::back_inserter(now_.at_end));
        }
      now_.clusters[static_cast<std::size_t>(cluster->first_block / now_.grid.cluster)].reset();
      return true;
    });
  }

  bool run_some() {
    bool moved = false;
    if (now_.random() % 64 == 0) draw_again();
    for (int i = 0; i < 50 && now_.problem.empty(); ++i) {
      Cluster& cluster = choose_cluster();
      Block& block = cluster.blocks[now_.random() % cluster.blocks.size()];
      const std::size_t warp = block.next_warp(now_.random);
      const std::uint32_t lanes = now_.random() % 8 == 0 ? some_lanes() : ~0u;
      moved = run_warp(block, warp, now_.random(), lanes & block.warps[warp].quick) || moved;
      if (now_.random() % later_one_in_ == 0) moved = work_later() || moved;
    }
    return moved;
  }
  // Nobody who is often chosen can go on: one who can, or copies.
  bool run_any() {
    if (now_.random() % 2 == 0 && work_later()) return true;
    std::vector<std::pair<Block*, std::size_t>> warps;
    for (Cluster* cluster : at_once_)
      for (Block& block : cluster->blocks)
        for (std::size_t warp = 0; warp < block.warps.size(); ++warp) warps.emplace_back(&block, warp);
    std::ranges::shuffle(warps, now_.random);
    for (const bool all : {false, true})
      for (const auto& [block, warp] : warps)
        if (run_warp(*block, warp, 0, all ? ~0u : block->warps[warp].quick)) return true;
    bool moved = false;
    for (int some = now_.random() % 2 == 0 ? 1 : 16; some > 0; --some) moved = work_later() || moved;
    return moved;
  }
  Cluster& choose_cluster() {
    double all = 0;
    for (const Cluster* cluster : at_once_) all += cluster->weight;
    double place = std::uniform_real_distribution<double>(0, all)(now_.random);
    for (Cluster* cluster : at_once_)
      if ((place -= cluster->weight) < 0) return *cluster;
    return *at_once_.back();
  }
  // From `first` on, those of the bits in `lanes`.
  bool run_warp(Block& block, std::size_t warp, std::size_t first = 0, std::uint32_t lanes = ~0u) {
    bool moved = false;
    block.has_begun = true;
    for (std::size_t i = 0; i < warp_threads && now_.problem.empty(); ++i) {
      const std::size_t lane = (first + i) % warp_threads;
      if (lanes >> lane & 1) moved = go_on(block.fibers[warp * warp_threads + lane]) || moved;
    }
    return moved;
  }
  bool work_later() {
    if (now_.later.empty()) return false;
    std::swap(now_.later[now_.random() % now_.later.size()], now_.later.back());
    const Work work = std::move(now_.later.back());
    now_.later.pop_back();
    work();
    return true;
  }
  // The first thread of each warp that has not ended.
  std::string who_waits() const {
    std::string who;
    for (const Cluster* cluster : at_once_)
      for (const Block& block : cluster->blocks) {
        who += " block " + std::to_string(block.fibers[0].block) + " threads";
        for (std::size_t i = 0; i < block.fibers.size(); ++i)
          if (!block.fibers[i].ended && (i % warp_threads == 0 || block.fibers[i - 1].ended))
            who += " " + std::to_string(i);
      }
    return who;
  }

  Running& now_;
  std::size_t most_at_once_, next_ = 0;
  unsigned later_one_in_;
  std::vector<Cluster*> at_once_;
};

}  // namespace

Thread& thread() { return *running->fiber; }
const Grid& grid() { return running->grid; }

unsigned shared_address(const void* pointer) {
  const auto address = static_cast<const unsigned char*>(pointer) - running->shared;
  require(address >= 0 && address < static_cast<std::ptrdiff_t>(running->grid.blocks) * block_stride,
          "an address that is not shared memory's");
  return static_cast<unsigned>(address);
}
unsigned char* shared_place(unsigned address) {
  const auto number = static_cast<int>(address / block_stride);
  const bool inside = number < running->grid.blocks && address % block_stride < shared_bytes;
  const Block* block = inside ? running->block(number) : nullptr;
  require(inside, "an address outside of shared memory");
  require(block != nullptr && block->has_begun && block->live > 0,
          "shared memory of a block that has not begun, or has ended");
  return running->shared + (inside ? address : 0);
}
unsigned char* own_place(unsigned address) {
  require(address / block_stride == static_cast<unsigned>(thread().block),
          "an address that is not the block's own");
  require(address % block_stride < shared_bytes, "an address outside of shared memory");
  return running->shared + address;
}
unsigned char* shared_memory() {
  return running->shared + static_cast<std::size_t>(thread().block) * block_stride;
}

void require(bool right, const char* what) {
  if (right) return;
  if (running->problem.empty()) running->problem = what;
  if (running->fiber != nullptr) leave_fiber();
}

void pause() {
  if (running->random() % 2 == 0) leave_fiber();
}
void wait_until(const std::function<bool()>& ready) {
  if (ready()) return;
  running->fiber->waits_for = &ready;
  leave_fiber();
}

const Lanes& together(std::uint64_t value, WarpWork work) {
  const auto number = static_cast<std::size_t>(thread().number);
  Warp& warp = running->block(thread().block)->warps[number / warp_threads];
  const unsigned mine = warp.meetings;
  Lanes& lanes = warp.lanes[mine % 2];
  lanes.value[number % warp_threads] = value;
  if (++warp.arrived == warp_threads) {
    if (work != nullptr) work(lanes);
    warp.arrived = 0;
    ++warp.meetings;
  } else {
    wait_until([&] { return warp.meetings != mine; });
  }
  return lanes;
}

void NamedBarrier::arrive(int threads) {
  if (++arrived < threads) return;
  arrived = 0;
  ++phase;
}
void NamedBarrier::sync(int threads) {
  const unsigned before = phase;
  arrive(threads);
  pause();  // the last to come is not the first to go on
  wait_until([&] { return phase != before; });
}
NamedBarrier& named_barrier(int id) {
  return running->block(thread().block)->barriers[static_cast<std::size_t>(id)];
}

void cluster_sync() {
  Cluster& cluster = *running->cluster_of(thread().block);
  const unsigned before = cluster.phase;
  ++cluster.arrived;
  cluster.end_phase_if_complete();
  wait_until([&] { return cluster.phase != before; });
}

void do_later(Work work) { running->later.push_back(std::move(work)); }

std::string run_grid(const Grid& grid, std::uint64_t seed, const std::function<void()>& kernel) {
  static std::vector<unsigned char> memory;  // kept: a grid begins with what it finds there, NaN
  constexpr std::size_t alignment = 1024;
  memory.assign(static_cast<std::size_t>(grid.blocks) * block_stride + alignment, 0xff);
  Running now;
  running = &now;
  now.grid = grid;
  now.kernel = &kernel;
  now.random.seed(seed);
  const auto start = reinterpret_cast<std::uintptr_t>(memory.data());
  now.shared = memory.data() + (alignment - start % alignment) % alignment;
  now.clusters.resize(static_cast<std::size_t>(grid.blocks / grid.cluster));
  Scheduler(now).run();
  std::ranges::shuffle(now.at_end, now.random);
  for (const Work& write : now.at_end) write();
  running = nullptr;
  return now.problem;
}

}  // namespace emulation
