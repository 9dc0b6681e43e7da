// flash_attention_3 for tests whose tensors lie in host memory: they are copied to a GPU and back.
#pragma once

#include "chorale/implementation.h"
#include "implementations/cuda/cuda_plan.h"
#include "implementations/cuda/gpu.h"

namespace chorale::testing {

// Told of every plan's problem, if there is somebody to tell: the fake GPU, which cannot run emitted
// programs.
inline void (*on_plan)(const Problem& bound) = nullptr;

// Device memory that a test holds.
class DeviceMemory {
 public:
  DeviceMemory(cuda::Gpu& gpu, std::size_t bytes);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();
  cuda::DevicePointer address() const { return address_; }

 private:
  cuda::Gpu& gpu_;
  cuda::DevicePointer address_ = 0;
};

// The tensors of a call on the device: what the views reach of the host's memory, at the same distance from a
// multiple of 256 bytes.
class OnDevice {
 public:
  OnDevice(cuda::Gpu& gpu, const ForwardTensors& host);
  const ForwardTensors& tensors() const { return tensors_; }
  void set_stream(void* stream) { tensors_.stream = stream; }
  Status to_device();  // inputs and outputs, as the host has them
  Status to_host();    // out and lse; waits for all that was begun

 private:
  struct Copy {
    void* host;
    std::size_t bytes, offset;
    bool is_output;
  };
  cuda::Gpu& gpu_;
  ForwardTensors tensors_;
  std::vector<Copy> copies_;
  std::unique_ptr<DeviceMemory> memory_;
};

// Plans and runs on the first GPU, in the order of arithmetic that it is given.
class OnGpu final : public Implementation {
 public:
  explicit OnGpu(cuda::Gpu& gpu, int chunk = 0) : gpu_(gpu), chunk_(chunk) {}  // chunk 0: its own
  std::string_view name() const override { return inner().name(); }
  Status supports(const Problem& problem, const Device&, Phase phase) const override {
    return inner().supports(problem, Device::cuda(), phase);
  }
  Fingerprint fingerprint(const Problem& problem, const Device&) const override {
    return inner().fingerprint(problem, Device::cuda());
  }
  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device&) const override;
  Status forward(const Plan& plan, const ForwardTensors& tensors) const override;
  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    return inner().backward(plan, tensors);
  }

 private:
  static const Implementation& inner();
  cuda::Gpu& gpu_;
  int chunk_;
};

}  // namespace chorale::testing
