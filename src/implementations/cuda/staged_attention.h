// flash_attention_3 for tensors in host memory: they are copied to a GPU and back. For whatever asks about
// its bits, not about its speed.
#pragma once

#include <memory>
#include <vector>

#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/gpu.h"
#include "implementations/cuda/memory.h"

namespace chorale::cuda {

// The tensors of a call on the device: what the views reach of the host's memory, at the same distance from a
// multiple of 16 bytes.
class StagedTensors {
 public:
  static Result<StagedTensors> create(const Gpu& gpu, const ForwardTensors& host);
  const ForwardTensors& tensors() const { return tensors_; }
  void set_stream(void* stream) { tensors_.stream = stream; }
  Status to_device() const;  // inputs and outputs, as the host has them
  Status to_host() const;    // out and lse; waits for all that was begun

 private:
  struct Copy {
    void* host;
    std::size_t bytes, offset;
    bool is_output;
  };
  StagedTensors(const Gpu& gpu, const ForwardTensors& host) : gpu_(&gpu), tensors_(host) {}

  const Gpu* gpu_;
  ForwardTensors tensors_;
  std::vector<Copy> copies_;
  std::unique_ptr<DeviceMemory> memory_;
};

class StagedAttention final : public Implementation {
 public:
  explicit StagedAttention(const Gpu& gpu) : gpu_(gpu) {}
  std::string_view name() const override { return cuda_attention().name(); }
  Status supports(const Problem& problem, const Device& device, Phase phase) const override {
    return cuda_attention().supports(problem, device, phase);
  }
  Fingerprint fingerprint(const Problem& problem, const Device& device) const override {
    return cuda_attention().fingerprint(problem, device);
  }
  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device& device) const override {
    return cuda_attention().plan(problem, batch, device);
  }
  Status forward(const Plan& plan, const ForwardTensors& tensors) const override;
  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    return cuda_attention().backward(plan, tensors);
  }

 private:
  const Gpu& gpu_;
};

}  // namespace chorale::cuda
