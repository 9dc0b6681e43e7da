#include "implementations/cuda/memory.h"

#include <fmt/format.h>

namespace chorale::cuda {

Result<std::unique_ptr<DeviceMemory>> DeviceMemory::allocate(const Gpu& gpu, std::size_t bytes) {
  const Gpu::UncapturedScope scope(gpu);
  const Driver& d = gpu.driver();
  DevicePointer address = 0;
  if (const int code = d.allocate(&address, bytes); code != 0) {
    std::size_t free = 0, total = 0;
    d.free_memory(&free, &total);
    return d.check(code, fmt::format("{} bytes on the GPU, which has {} free", bytes, free));
  }
  return std::unique_ptr<DeviceMemory>(new DeviceMemory(gpu, address, bytes));
}

DeviceMemory::~DeviceMemory() {
  const Gpu::UncapturedScope scope(gpu_);
  gpu_.driver().free(address_);  // waits for what still uses it
}

Result<std::unique_ptr<PinnedMemory>> PinnedMemory::allocate(const Gpu& gpu, std::size_t bytes) {
  const Gpu::UncapturedScope scope(gpu);
  const Driver& d = gpu.driver();
  std::unique_ptr<PinnedMemory> memory(new PinnedMemory(gpu));
  memory->bytes_ = bytes;
  CHORALE_RETURN_IF_ERROR(d.check(d.allocate_host(&memory->data_, bytes, 0),
                                  fmt::format("{} bytes of pinned host memory", bytes)));
  CHORALE_RETURN_IF_ERROR(d.check(d.create_event(&memory->copied_, driver_constants::event_disable_timing),
                                  "an event for pinned memory"));
  return memory;
}

PinnedMemory::~PinnedMemory() {
  const Gpu::UncapturedScope scope(gpu_);
  const Driver& d = gpu_.driver();
  (void)wait();
  if (data_ != nullptr) d.free_host(data_);
  if (copied_ != nullptr) d.destroy_event(copied_);
}

Status PinnedMemory::copy(DevicePointer to, std::size_t bytes, Stream stream) {
  const Driver& d = gpu_.driver();
  // So that the event stands for every copy.
  if (in_flight_)
    CHORALE_RETURN_IF_ERROR(d.check(d.stream_wait_event(stream, copied_, 0), "waiting for a copy"));
  in_flight_ = true;
  CHORALE_RETURN_IF_ERROR(d.check(d.copy_to_device(to, data_, bytes, stream), "copying to the GPU"));
  return d.check(d.record_event(copied_, stream), "marking a copy");
}

bool PinnedMemory::is_idle() {
  if (!in_flight_) return true;
  const Gpu::UncapturedScope scope(gpu_);
  in_flight_ = gpu_.driver().query_event(copied_) != 0;
  return !in_flight_;
}

Status PinnedMemory::wait() {
  if (!in_flight_) return Status::ok();
  const Gpu::UncapturedScope scope(gpu_);
  CHORALE_RETURN_IF_ERROR(
      gpu_.driver().check(gpu_.driver().synchronize_event(copied_), "waiting for a copy"));
  in_flight_ = false;
  return Status::ok();
}

Result<std::unique_ptr<SideStream>> SideStream::create(const Gpu& gpu) {
  const Gpu::UncapturedScope scope(gpu);
  std::unique_ptr<SideStream> side(new SideStream(gpu));
  CHORALE_RETURN_IF_ERROR(gpu.driver().check(
      gpu.driver().create_stream(&side->stream_, driver_constants::stream_non_blocking), "making a stream"));
  return side;
}

SideStream::~SideStream() {
  const Gpu::UncapturedScope scope(gpu_);
  if (stream_ != nullptr) gpu_.driver().destroy_stream(stream_);
}

Status SideStream::wait() const {
  const Gpu::UncapturedScope scope(gpu_);
  return gpu_.driver().check(gpu_.driver().synchronize_stream(stream_), "waiting for a stream");
}

}  // namespace chorale::cuda
