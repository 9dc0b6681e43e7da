// Gpu: one card, and the kernels that were loaded on it.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "implementations/cuda/compiler.h"
#include "implementations/cuda/driver.h"

namespace chorale::cuda {

struct Kernel {
  KernelKey key;
  Function function = nullptr;
  LaunchShape shape;
  std::string cache_note;  // of CompiledKernel
};

// Safe to use from several threads at once. Lives as long as the process.
class Gpu {
 public:
  // The card of this number; the failure says why there is none.
  static Result<Gpu*> get(int ordinal);
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const std::string& name() const { return name_; }
  int compute_major() const { return major_; }
  int compute_minor() const { return minor_; }
  int multiprocessors() const { return multiprocessors_; }
  std::string arch() const;      // "sm_90a"
  std::string describe() const;  // "cuda:0 (NVIDIA H200, sm_90, 132 multiprocessors, 141 GB)"
  const Driver& driver() const { return *driver_; }

  // The kernel of this key, compiled and loaded at the first call.
  Result<const Kernel*> kernel(const KernelKey& key);
  // Launches `blocks` blocks of threads. `parameters` is the kernel's one argument.
  Status launch(const Kernel& kernel, int blocks, const void* parameters, Stream stream) const;

  // The card's context is current in this scope, whatever the caller has current.
  class Scope {
   public:
    explicit Scope(const Gpu& gpu) : driver_(gpu.driver_) { driver_->push_context(gpu.context_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() {
      Context ignored;
      driver_->pop_context(&ignored);
    }

   protected:
    const Driver* driver_;
  };

  // In this scope, too; and the thread may do what must not be done while a graph is being captured, here or
  // in another thread: take and free memory, ask for events. It has no part in the capture.
  class UncapturedScope : Scope {
   public:
    explicit UncapturedScope(const Gpu& gpu) : Scope(gpu) { driver_->exchange_capture_mode(&mode_); }
    ~UncapturedScope() { driver_->exchange_capture_mode(&mode_); }

   private:
    int mode_ = driver_constants::capture_relaxed;  // then: what was before
  };

 private:
  Gpu() = default;
  static Result<std::unique_ptr<Gpu>> open(int ordinal);
  Result<Kernel> load(const KernelKey& key) const;

  const Driver* driver_ = nullptr;
  Context context_ = nullptr;
  int ordinal_ = 0, major_ = 0, minor_ = 0, multiprocessors_ = 0, shared_bytes_ = 0;
  std::size_t memory_ = 0;
  std::string name_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Kernel>> kernels_;  // guarded by mutex_; never removed
};

}  // namespace chorale::cuda
