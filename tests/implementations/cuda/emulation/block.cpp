#include "block.h"

#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>

namespace emulation {
namespace {

constexpr std::size_t stack_bytes = 256 << 10;

struct Fiber : Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(stack_bytes);
  const std::function<bool()>* waits_for = nullptr;
};
struct Warp {
  Lanes lanes[2];  // of this exchange and the one before
  int arrived = 0;
  unsigned exchanges = 0;
  double weight = 1;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::map<int, NamedBarrier> barriers;
  std::deque<std::function<void()>> later;
  std::mt19937_64 random;
  ucontext_t scheduler;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
};
Block* block = nullptr;

void enter() {
  (*block->kernel)();
  block->running->ended = true;
  swapcontext(&block->running->context, &block->scheduler);
}

// Lets a fiber go on until it waits. False: it waits still.
bool go_on(Fiber& fiber) {
  if (fiber.ended || (fiber.waits_for != nullptr && !(*fiber.waits_for)())) return false;
  fiber.waits_for = nullptr;
  block->running = &fiber;
  swapcontext(&block->scheduler, &fiber.context);
  return true;
}

}  // namespace

Thread& thread() { return *block->running; }

NamedBarrier& named_barrier(int id) { return block->barriers[id]; }

void wait_until(const std::function<bool()>& ready) {
  if (ready()) return;
  Fiber& self = *block->running;
  self.waits_for = &ready;
  swapcontext(&self.context, &block->scheduler);
}

Lanes exchange(std::uint64_t value) {
  Warp& warp = block->warps[static_cast<std::size_t>(thread().number / warp_threads)];
  const unsigned mine = warp.exchanges;
  Lanes& lanes = warp.lanes[mine % 2];
  lanes.value[thread().number % warp_threads] = value;
  if (++warp.arrived == warp_threads) {
    warp.arrived = 0;
    ++warp.exchanges;
  }
  wait_until([&] { return warp.exchanges != mine; });
  return lanes;
}

void do_later(std::function<void()> work) { block->later.push_back(std::move(work)); }

bool run_block(int threads, std::uint64_t seed, const std::function<void()>& kernel, std::string* problem) {
  Block now;
  block = &now;
  now.kernel = &kernel;
  now.random.seed(seed);
  now.warps.resize(static_cast<std::size_t>(threads / warp_threads));
  for (Warp& warp : now.warps) warp.weight = std::vector<double>{1, 1, 5, 25}[now.random() % 4];
  for (int i = 0; i < threads; ++i) {
    auto fiber = std::make_unique<Fiber>();
    fiber->number = i;
    getcontext(&fiber->context);
    fiber->context.uc_stack = {fiber->stack.data(), 0, fiber->stack.size()};
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, enter, 0);
    now.fibers.push_back(std::move(fiber));
  }
  std::vector<double> weights;
  for (const Warp& warp : now.warps) weights.push_back(warp.weight);
  std::discrete_distribution<std::size_t> choose(weights.begin(), weights.end());
  const auto run_warp = [&](std::size_t warp) {
    bool moved = false;
    for (int lane = 0; lane < warp_threads; ++lane)
      moved = go_on(*now.fibers[warp * warp_threads + static_cast<std::size_t>(lane)]) || moved;
    return moved;
  };
  const auto copy = [&] {
    if (now.later.empty()) return false;
    const std::function<void()> work = std::move(now.later.front());
    now.later.pop_front();
    work();
    return true;
  };
  const auto has_ended = [&] {
    for (const auto& fiber : now.fibers)
      if (!fiber->ended) return false;
    return true;
  };
  while (!has_ended()) {
    bool moved = false;
    for (int i = 0; i < 50; ++i) {
      moved = run_warp(choose(now.random)) || moved;
      if (now.random() % 8 == 0) moved = copy() || moved;
    }
    if (moved) continue;
    moved = copy();
    for (std::size_t warp = 0; warp < now.warps.size(); ++warp) moved = run_warp(warp) || moved;
    if (!moved) {
      *problem = "waiting for ever: threads";
      for (const auto& fiber : now.fibers)
        if (!fiber->ended && fiber->number % warp_threads == 0)
          *problem += " " + std::to_string(fiber->number);
      return false;
    }
  }
  std::vector<std::function<void()>> writes;
  for (const auto& fiber : now.fibers)
    writes.insert(writes.end(), fiber->unwritten.begin(), fiber->unwritten.end());
  std::shuffle(writes.begin(), writes.end(), now.random);
  for (const auto& write : writes) write();
  return true;
}

}  // namespace emulation
