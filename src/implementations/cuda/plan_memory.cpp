#include "implementations/cuda/plan_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>

namespace chorale::cuda {

namespace {

// So that a batch that grows a little finds room the next time, at the price of an eighth at most.
std::size_t rounded_up(std::size_t bytes) {
  bytes = std::max<std::size_t>(bytes, 64 << 10);
  const std::size_t step = std::bit_floor(bytes) / 8;  // a power of two
  return (bytes + step - 1) & ~(step - 1);
}

}  // namespace

Result<std::unique_ptr<PlanMemory>> PlanMemory::allocate(const Gpu& gpu, std::size_t host_bytes,
                                                         std::size_t device_bytes) {
  const Gpu::Scope scope(gpu);
  const Driver& d = gpu.driver();
  std::unique_ptr<PlanMemory> memory(new PlanMemory(gpu));
  memory->host_bytes_ = host_bytes;
  memory->device_bytes_ = device_bytes;
  CHORALE_RETURN_IF_ERROR(
      d.check(d.allocate_host(&memory->host_, host_bytes, 0), "pinned memory for a plan"));
  if (const int code = d.allocate(&memory->device_, device_bytes); code != 0) {
    std::size_t free = 0, total = 0;
    d.free_memory(&free, &total);
    return d.check(code, fmt::format("a plan's {} bytes on the GPU, which has {} free", device_bytes, free));
  }
  CHORALE_RETURN_IF_ERROR(d.check(d.create_event(&memory->uploaded_, driver_constants::event_disable_timing),
                                  "an event for a plan"));
  return memory;
}

PlanMemory::~PlanMemory() {
  const Gpu::Scope scope(gpu_);
  const Driver& d = gpu_.driver();
  if (device_ != 0) d.free(device_);  // waits for what still reads it
  if (host_ != nullptr) d.free_host(host_);
  if (uploaded_ != nullptr) d.destroy_event(uploaded_);
}

Status PlanMemory::upload(std::size_t bytes, Stream stream) {
  const Driver& d = gpu_.driver();
  CHORALE_RETURN_IF_ERROR(
      d.check(d.copy_to_device(device_, host_, bytes, stream), "copying a plan to the GPU"));
  return d.check(d.record_event(uploaded_, stream), "marking a plan's copy");
}

bool PlanMemory::is_idle() const { return gpu_.driver().query_event(uploaded_) == 0; }
Status PlanMemory::wait() const {
  return gpu_.driver().check(gpu_.driver().synchronize_event(uploaded_), "waiting for a plan's copy");
}
Status PlanMemory::await_in(Stream stream) const {
  return gpu_.driver().check(gpu_.driver().stream_wait_event(stream, uploaded_, 0),
                             "waiting for a plan's copy");
}

PlanMemoryPool& PlanMemoryPool::of(const Gpu& gpu) {
  static std::mutex mutex;
  static auto& pools = *new std::map<const Gpu*, PlanMemoryPool>;
  const std::lock_guard lock(mutex);
  return pools[&gpu];
}

Result<std::unique_ptr<PlanMemory>> PlanMemoryPool::take(const Gpu& gpu, unsigned long long stream_id,
                                                         std::size_t host_bytes, std::size_t device_bytes) {
  {
    const std::lock_guard lock(mutex_);
    const Gpu::Scope scope(gpu);
    auto best = free_.end();  // the smallest that fits
    for (auto entry = free_.begin(); entry != free_.end(); ++entry)
      if (entry->stream_id == stream_id && entry->memory->host_bytes() >= host_bytes &&
          entry->memory->device_bytes() >= device_bytes &&
          (best == free_.end() || entry->memory->device_bytes() < best->memory->device_bytes()) &&
          entry->memory->is_idle())
        best = entry;
    if (best != free_.end()) {
      std::unique_ptr<PlanMemory> memory = std::move(best->memory);
      free_.erase(best);
      return memory;
    }
  }
  const auto allocate = [&] {
    return PlanMemory::allocate(gpu, rounded_up(host_bytes), rounded_up(device_bytes));
  };
  Result<std::unique_ptr<PlanMemory>> memory = allocate();
  if (memory || memory.status().code() != Code::resource_exhausted) return memory;
  drop([](std::size_t, std::size_t) { return true; });
  return allocate();
}

void PlanMemoryPool::give_back(unsigned long long stream_id, std::unique_ptr<PlanMemory> memory) {
  {
    const std::lock_guard lock(mutex_);
    free_.push_back({stream_id, std::move(memory)});
  }
  // A step's plan and the next one's are always kept, whatever their size.
  constexpr std::size_t always = 2, most = 8, most_bytes = 256 << 20;
  drop([](std::size_t blocks, std::size_t bytes) {
    return blocks > most || (blocks > always && bytes > most_bytes);
  });
}

// Those that were given back first, while so many blocks and bytes are too much.
void PlanMemoryPool::drop(bool (*is_too_much)(std::size_t blocks, std::size_t bytes)) {
  std::vector<Free> dropped;  // freed outside of the lock: that waits for the GPU
  const std::lock_guard lock(mutex_);
  std::size_t bytes = 0;
  for (const Free& entry : free_) bytes += entry.memory->device_bytes();
  while (!free_.empty() && is_too_much(free_.size(), bytes)) {
    bytes -= free_.front().memory->device_bytes();
    dropped.push_back(std::move(free_.front()));
    free_.erase(free_.begin());
  }
}

}  // namespace chorale::cuda
