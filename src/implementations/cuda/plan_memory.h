// Device memory for plans, kept and used again: taking it from the driver would cost more than a step.
#pragma once

#include <memory>

#include "implementations/cuda/gpu.h"

namespace chorale::cuda {

// A block of device memory and one of pinned host memory, from which the first part of the device's is
// written.
class PlanMemory {
 public:
  static Result<std::unique_ptr<PlanMemory>> allocate(const Gpu& gpu, std::size_t host_bytes,
                                                      std::size_t device_bytes);
  PlanMemory(const PlanMemory&) = delete;
  PlanMemory& operator=(const PlanMemory&) = delete;
  ~PlanMemory();

  std::byte* host() const { return static_cast<std::byte*>(host_); }
  DevicePointer device() const { return device_; }
  std::size_t host_bytes() const { return host_bytes_; }
  std::size_t device_bytes() const { return device_bytes_; }

  // Copies the first `bytes` of the host's part to the device, in the order of `stream`.
  Status upload(std::size_t bytes, Stream stream);
  // Whether the last upload is over, so that the host's part may be written again; wait() makes it so.
  bool is_idle() const;
  Status wait() const;
  // Makes `stream` wait for the last upload, which was in another stream.
  Status await_in(Stream stream) const;

 private:
  explicit PlanMemory(const Gpu& gpu) : gpu_(gpu) {}
  const Gpu& gpu_;
  void* host_ = nullptr;
  DevicePointer device_ = 0;
  std::size_t host_bytes_ = 0, device_bytes_ = 0;
  Event uploaded_ = nullptr;
};

// Blocks that plans have given back. A block serves only plans of the stream whose kernels may still be
// reading it: a stream does one thing after another, so nothing needs to wait. Thread-safe.
class PlanMemoryPool {
 public:
  // The pool of a card.
  static PlanMemoryPool& of(const Gpu& gpu);
  Result<std::unique_ptr<PlanMemory>> take(const Gpu& gpu, unsigned long long stream_id,
                                           std::size_t host_bytes, std::size_t device_bytes);
  void give_back(unsigned long long stream_id, std::unique_ptr<PlanMemory> memory);

 private:
  struct Free {
    unsigned long long stream_id;
    std::unique_ptr<PlanMemory> memory;
  };
  void drop(bool (*is_too_much)(std::size_t blocks, std::size_t bytes));
  std::mutex mutex_;
  std::vector<Free> free_;  // the last given back last
};

}  // namespace chorale::cuda
