#include "implementations/cuda/plan_memory.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

namespace chorale::cuda {
namespace {

// So that a batch that grows a little finds room the next time, at the price of an eighth at most.
std::size_t rounded_up(std::size_t bytes) {
  bytes = std::max<std::size_t>(bytes, 64 << 10);
  const std::size_t step = std::bit_floor(bytes) / 8;  // a power of two
  return (bytes + step - 1) & ~(step - 1);
}

}  // namespace

PlanMemoryPool& PlanMemoryPool::of(const Gpu& gpu) {
  static std::mutex mutex;
  static auto& pools = *new std::map<const Gpu*, PlanMemoryPool>;
  const std::lock_guard lock(mutex);
  return pools.try_emplace(&gpu, gpu).first->second;
}

template <class Memory, class F>
std::unique_ptr<Memory> PlanMemoryPool::take_smallest(FreeList<Memory>& list, F&& serves) {
  auto best = list.end();
  for (auto entry = list.begin(); entry != list.end(); ++entry)
    if ((best == list.end() || entry->memory->bytes() <= best->memory->bytes()) && serves(*entry))
      best = entry;
  if (best == list.end()) return nullptr;
  std::unique_ptr<Memory> memory = std::move(best->memory);
  list.erase(best);
  return memory;
}

// A step's memory and the next one's are always kept, whatever their size; those that were given back first
// go.
template <class Memory>
void PlanMemoryPool::keep(FreeList<Memory>& list, Free<Memory> entry) {
  constexpr std::size_t always = 2, most = 8, most_bytes = 256 << 20;
  FreeList<Memory> dropped;  // freed outside of the lock: that waits for the GPU
  const std::lock_guard lock(mutex_);
  list.push_back(std::move(entry));
  std::size_t bytes = 0;
  for (const Free<Memory>& kept : list) bytes += kept.memory->bytes();
  while (list.size() > most || (list.size() > always && bytes > most_bytes)) {
    bytes -= list.front().memory->bytes();
    dropped.push_back(std::move(list.front()));
    list.erase(list.begin());
  }
}

Result<std::unique_ptr<PinnedMemory>> PlanMemoryPool::take_pinned(std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    auto memory = take_smallest(pinned_, [&](const Free<PinnedMemory>& entry) {
      return entry.memory->bytes() >= bytes && entry.memory->is_idle();
    });
    if (memory != nullptr) return memory;
  }
  return PinnedMemory::allocate(gpu_, rounded_up(bytes));
}

void PlanMemoryPool::give_back(std::unique_ptr<PinnedMemory> memory) {
  keep(pinned_, {0, std::move(memory)});
}

Result<std::unique_ptr<DeviceMemory>> PlanMemoryPool::take(unsigned long long stream_id, std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    auto memory = take_smallest(device_, [&](const Free<DeviceMemory>& entry) {
      return entry.stream_id == stream_id && entry.memory->bytes() >= bytes;
    });
    if (memory != nullptr) return memory;
  }
  return take_unused(bytes);
}

void PlanMemoryPool::give_back(unsigned long long stream_id, std::unique_ptr<DeviceMemory> memory) {
  keep(device_, {stream_id, std::move(memory)});
}

Result<std::unique_ptr<DeviceMemory>> PlanMemoryPool::take_unused(std::size_t bytes) {
  Result<std::unique_ptr<DeviceMemory>> memory = DeviceMemory::allocate(gpu_, rounded_up(bytes));
  if (memory || memory.status().code() != Code::resource_exhausted) return memory;
  {
    FreeList<DeviceMemory> dropped;
    const std::lock_guard lock(mutex_);
    dropped.swap(device_);
  }
  return DeviceMemory::allocate(gpu_, rounded_up(bytes));
}

}  // namespace chorale::cuda
