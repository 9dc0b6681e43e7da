#include "implementations/cuda/staged_attention.h"

namespace chorale::cuda {
namespace {

// Of the memory that a view reaches.
std::size_t extent_bytes(const TensorView& view) {
  std::int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 0) return 0;
    last += (view.shape[i] - 1) * view.stride[i];
  }
  return static_cast<std::size_t>(last + 1) * size_of(view.dtype);
}

}  // namespace

Result<StagedTensors> StagedTensors::create(const Gpu& gpu, const ForwardTensors& host) {
  constexpr std::size_t alignment = 256;
  StagedTensors staged(gpu, host);
  ForwardTensors& tensors = staged.tensors_;
  std::size_t size = 0;
  std::vector<TensorView*> placed;
  for (TensorView* view : {&tensors.q, &tensors.k, &tensors.v, &tensors.out, &tensors.lse, &tensors.sinks,
                           &tensors.k_scale, &tensors.v_scale}) {
    if (view->empty()) continue;
    const std::size_t offset = size + reinterpret_cast<std::uintptr_t>(view->data) % 16;
    const bool is_output = view == &tensors.out || view == &tensors.lse;
    staged.copies_.push_back({view->data, extent_bytes(*view), offset, is_output});
    placed.push_back(view);
    size = (offset + staged.copies_.back().bytes + alignment) / alignment * alignment;
  }
  CHORALE_ASSIGN_OR_RETURN(staged.memory_, DeviceMemory::allocate(gpu, size + alignment));
  for (std::size_t i = 0; i < placed.size(); ++i)
    placed[i]->data = reinterpret_cast<void*>(staged.memory_->address() + staged.copies_[i].offset);
  return staged;
}

Status StagedTensors::to_device() const {
  const Gpu::Scope scope(*gpu_);
  const Driver& d = gpu_->driver();
  for (const Copy& copy : copies_)
    CHORALE_RETURN_IF_ERROR(
        d.check(d.copy_to_device(memory_->address() + copy.offset, copy.host, copy.bytes, nullptr),
                "copying to the GPU"));
  return d.check(d.synchronize_stream(nullptr), "copying to the GPU");
}

Status StagedTensors::to_host() const {
  const Gpu::Scope scope(*gpu_);
  const Driver& d = gpu_->driver();
  CHORALE_RETURN_IF_ERROR(
      d.check(d.synchronize_stream(static_cast<Stream>(tensors_.stream)), "running the kernel"));
  for (const Copy& copy : copies_)
    if (copy.is_output && copy.bytes > 0)
      CHORALE_RETURN_IF_ERROR(
          d.check(d.copy_to_host(copy.host, memory_->address() + copy.offset, copy.bytes, nullptr),
                  "copying from the GPU"));
  return d.check(d.synchronize_stream(nullptr), "copying from the GPU");
}

Status StagedAttention::forward(const Plan& plan, const ForwardTensors& tensors) const {
  CHORALE_ASSIGN_OR_RETURN(const StagedTensors staged, StagedTensors::create(gpu_, tensors));
  CHORALE_RETURN_IF_ERROR(staged.to_device());
  CHORALE_RETURN_IF_ERROR(cuda_attention().forward(plan, staged.tensors()));
  return staged.to_host();
}

}  // namespace chorale::cuda
