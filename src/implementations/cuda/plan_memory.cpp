#include "implementations/cuda/plan_memory.h"

#include <algorithm>
#include <bit>
#include <map>

namespace chorale::cuda {

Result<std::unique_ptr<PlanMemory>> PlanMemory::allocate(const Gpu& gpu, std::size_t host_bytes,
                                                         std::size_t device_bytes) {
  const Gpu::Scope scope(gpu);
  const Driver& d = gpu.driver();
  std::unique_ptr<PlanMemory> memory(new PlanMemory(gpu));
  memory->host_bytes_ = host_bytes;
  memory->device_bytes_ = device_bytes;
  CHORALE_RETURN_IF_ERROR(
      d.check(d.allocate_host(&memory->host_, host_bytes, 0), "pinned memory for a plan"));
  CHORALE_RETURN_IF_ERROR(d.check(d.allocate(&memory->device_, device_bytes), "device memory for a plan"));
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
    const auto fits = [&](const Free& entry) {
      return entry.stream_id == stream_id && entry.memory->host_bytes() >= host_bytes &&
             entry.memory->device_bytes() >= device_bytes && entry.memory->is_idle();
    };
    if (const auto found = std::find_if(free_.begin(), free_.end(), fits); found != free_.end()) {
      std::unique_ptr<PlanMemory> memory = std::move(found->memory);
      free_.erase(found);
      return memory;
    }
  }
  // Rounded up, so that a batch that grows a little finds room the next time.
  constexpr std::size_t least = 64 << 10;
  return PlanMemory::allocate(gpu, std::bit_ceil(std::max(host_bytes, least)),
                              std::bit_ceil(std::max(device_bytes, least)));
}

void PlanMemoryPool::give_back(unsigned long long stream_id, std::unique_ptr<PlanMemory> memory) {
  constexpr std::size_t most = 8;
  std::unique_ptr<PlanMemory> oldest;  // freed outside of the lock: that waits for the GPU
  const std::lock_guard lock(mutex_);
  free_.push_back({stream_id, std::move(memory)});
  if (free_.size() > most) {
    oldest = std::move(free_.front().memory);
    free_.erase(free_.begin());
  }
}

}  // namespace chorale::cuda
