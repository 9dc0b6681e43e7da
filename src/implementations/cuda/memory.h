// Memory of the GPU's and the host's, and a stream to fill it from beside a capture. All of it may be taken
// and freed while a graph is being captured.
#pragma once

#include <memory>

#include "implementations/cuda/gpu.h"

namespace chorale::cuda {

// Device memory, freed with this. resource_exhausted names the bytes wanted and free.
class DeviceMemory {
 public:
  static Result<std::unique_ptr<DeviceMemory>> allocate(const Gpu& gpu, std::size_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();
  DevicePointer address() const { return address_; }
  std::size_t bytes() const { return bytes_; }

 private:
  DeviceMemory(const Gpu& gpu, DevicePointer address, std::size_t bytes)
      : gpu_(gpu), address_(address), bytes_(bytes) {}
  const Gpu& gpu_;
  DevicePointer address_;
  std::size_t bytes_;
};

// Pinned host memory that is copied to the device; freed with this. One thread at a time.
class PinnedMemory {
 public:
  static Result<std::unique_ptr<PinnedMemory>> allocate(const Gpu& gpu, std::size_t bytes);
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory();
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::size_t bytes() const { return bytes_; }

  // Copies the first `bytes` in the order of `stream`, after all copies before.
  Status copy(DevicePointer to, std::size_t bytes, Stream stream);
  // Whether all copies are over, so that it may be written again; wait() makes it so.
  bool is_idle();
  Status wait();

 private:
  explicit PinnedMemory(const Gpu& gpu) : gpu_(gpu) {}
  const Gpu& gpu_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Event copied_ = nullptr;  // the last copy
  bool in_flight_ = false;  // it may not be over
};

// A stream of its own, which no capture and no other stream waits for.
class SideStream {
 public:
  static Result<std::unique_ptr<SideStream>> create(const Gpu& gpu);
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  ~SideStream();
  Stream stream() const { return stream_; }
  Status wait() const;

 private:
  explicit SideStream(const Gpu& gpu) : gpu_(gpu) {}
  const Gpu& gpu_;
  Stream stream_ = nullptr;
};

}  // namespace chorale::cuda
