// flash_attention_3 for tests whose tensors lie in host memory: they are copied to a GPU and back.
#pragma once

#include "chorale/implementation.h"
#include "implementations/cuda/cuda_plan.h"
#include "implementations/cuda/gpu.h"
#include "implementations/cuda/staged_attention.h"

namespace chorale::testing {

// Told of every plan's problem, if there is somebody to tell: the fake GPU, which cannot run emitted
// programs.
inline void (*on_plan)(const Problem& bound) = nullptr;

// The tensors of a call on the device. Throws where there is no memory.
class OnDevice {
 public:
  OnDevice(cuda::Gpu& gpu, const ForwardTensors& host)
      : staged_(cuda::StagedTensors::create(gpu, host).value()) {}
  const ForwardTensors& tensors() const { return staged_.tensors(); }
  void set_stream(void* stream) { staged_.set_stream(stream); }
  Status to_device() { return staged_.to_device(); }
  Status to_host() { return staged_.to_host(); }

 private:
  cuda::StagedTensors staged_;
};

// Plans and runs on the first GPU, in the order of arithmetic, and with clusters of the decode kernel, that
// it is given. 0: its own.
class OnGpu final : public Implementation {
 public:
  explicit OnGpu(cuda::Gpu& gpu, int chunk = 0, int cluster = 0)
      : gpu_(gpu), inner_(gpu), chunk_(chunk), cluster_(cluster) {}
  std::string_view name() const override { return inner_.name(); }
  Status supports(const Problem& problem, const Device&, Phase phase) const override {
    return inner_.supports(problem, Device::cuda(), phase);
  }
  Fingerprint fingerprint(const Problem& problem, const Device&) const override {
    return inner_.fingerprint(problem, Device::cuda());
  }
  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device&) const override;
  Status forward(const Plan& plan, const ForwardTensors& tensors) const override {
    return inner_.forward(plan, tensors);
  }
  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    return inner_.backward(plan, tensors);
  }

 private:
  cuda::Gpu& gpu_;
  cuda::StagedAttention inner_;
  int chunk_, cluster_;
};

}  // namespace chorale::testing
