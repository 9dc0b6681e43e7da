// Memory for plans, kept and used again: taking it from the driver would cost more than a step.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "implementations/cuda/memory.h"

namespace chorale::cuda {

// What plans have given back. Device memory serves only plans of the stream whose launches used it: a stream
// does one thing after another, so nothing needs to wait. Pinned memory serves any plan once its copies are
// over. Thread-safe.
class PlanMemoryPool {
 public:
  explicit PlanMemoryPool(const Gpu& gpu) : gpu_(gpu) {}
  // The pool of a card.
  static PlanMemoryPool& of(const Gpu& gpu);
  Result<std::unique_ptr<PinnedMemory>> take_pinned(std::size_t bytes);
  void give_back(std::unique_ptr<PinnedMemory> memory);
  Result<std::unique_ptr<DeviceMemory>> take(unsigned long long stream_id, std::size_t bytes);
  void give_back(unsigned long long stream_id, std::unique_ptr<DeviceMemory> memory);
  // Memory that nobody has used before, for what belongs to no stream. It does not come back.
  Result<std::unique_ptr<DeviceMemory>> take_unused(std::size_t bytes);

 private:
  template <class Memory>
  struct Free {
    unsigned long long stream_id;
    std::unique_ptr<Memory> memory;
  };
  template <class Memory>
  using FreeList = std::vector<Free<Memory>>;  // the last given back last

  // Of equal ones the last given back, which caches may still hold.
  template <class Memory, class F>
  static std::unique_ptr<Memory> take_smallest(FreeList<Memory>& list, F&& serves);
  template <class Memory>
  void keep(FreeList<Memory>& list, Free<Memory> entry);

  const Gpu& gpu_;
  std::mutex mutex_;  // guards what follows
  FreeList<DeviceMemory> device_;
  FreeList<PinnedMemory> pinned_;
};

}  // namespace chorale::cuda
