#include "implementations/cuda/on_gpu.h"

#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/order.h"

namespace chorale::testing {
namespace {

std::size_t extent_bytes(const TensorView& view) {
  std::int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 0) return 0;
    last += (view.shape[i] - 1) * view.stride[i];
  }
  return static_cast<std::size_t>(last + 1) * size_of(view.dtype);
}

}  // namespace

DeviceMemory::DeviceMemory(cuda::Gpu& gpu, std::size_t bytes) : gpu_(gpu) {
  const cuda::Gpu::Scope scope(gpu_);
  const Status status = gpu_.driver().check(gpu_.driver().allocate(&address_, bytes), "memory for a test");
  if (!status.is_ok()) throw BadResult(status);
}
DeviceMemory::~DeviceMemory() {
  const cuda::Gpu::Scope scope(gpu_);
  gpu_.driver().free(address_);
}

OnDevice::OnDevice(cuda::Gpu& gpu, const ForwardTensors& host) : gpu_(gpu), tensors_(host) {
  constexpr std::size_t alignment = 256;
  std::size_t size = 0;
  std::vector<TensorView*> placed;
  for (TensorView* view : {&tensors_.q, &tensors_.k, &tensors_.v, &tensors_.out, &tensors_.lse,
                           &tensors_.sinks, &tensors_.k_scale, &tensors_.v_scale}) {
    if (view->empty()) continue;
    const std::size_t offset = size + reinterpret_cast<std::uintptr_t>(view->data) % 16;
    copies_.push_back(
        {view->data, extent_bytes(*view), offset, view == &tensors_.out || view == &tensors_.lse});
    placed.push_back(view);
    size = (offset + copies_.back().bytes + alignment) / alignment * alignment;
  }
  memory_ = std::make_unique<DeviceMemory>(gpu_, size + alignment);
  for (std::size_t i = 0; i < placed.size(); ++i)
    placed[i]->data = reinterpret_cast<void*>(memory_->address() + copies_[i].offset);
}

Status OnDevice::to_device() {
  const cuda::Gpu::Scope scope(gpu_);
  const cuda::Driver& d = gpu_.driver();
  for (const Copy& copy : copies_)
    CHORALE_RETURN_IF_ERROR(
        d.check(d.copy_to_device(memory_->address() + copy.offset, copy.host, copy.bytes, nullptr),
                "copying to the GPU"));
  return d.check(d.synchronize_stream(nullptr), "copying to the GPU");
}

Status OnDevice::to_host() {
  const cuda::Gpu::Scope scope(gpu_);
  const cuda::Driver& d = gpu_.driver();
  CHORALE_RETURN_IF_ERROR(
      d.check(d.synchronize_stream(static_cast<cuda::Stream>(tensors_.stream)), "running the kernel"));
  for (const Copy& copy : copies_)
    if (copy.is_output && copy.bytes > 0)
      CHORALE_RETURN_IF_ERROR(
          d.check(d.copy_to_host(copy.host, memory_->address() + copy.offset, copy.bytes, nullptr),
                  "copying from the GPU"));
  return d.check(d.synchronize_stream(nullptr), "copying from the GPU");
}

const Implementation& OnGpu::inner() { return cuda_attention(); }

Result<std::shared_ptr<const Plan>> OnGpu::plan(const Problem& problem, const Batch& batch,
                                                const Device&) const {
  if (chunk_ == 0) {
    CHORALE_ASSIGN_OR_RETURN(std::shared_ptr<const Plan> plan, inner().plan(problem, batch, Device::cuda()));
    if (on_plan != nullptr) on_plan(plan->problem());
    return plan;
  }
  CHORALE_ASSIGN_OR_RETURN(
      std::shared_ptr<cuda::CudaPlan> made,
      cuda::CudaPlan::create(name(), gpu_, problem, batch,
                             {cuda::tile_keys(problem.head_dim, problem.value_dim()), chunk_}));
  return std::shared_ptr<const Plan>(std::move(made));
}

Status OnGpu::forward(const Plan& plan, const ForwardTensors& tensors) const {
  OnDevice device(gpu_, tensors);
  CHORALE_RETURN_IF_ERROR(device.to_device());
  CHORALE_RETURN_IF_ERROR(inner().forward(plan, device.tensors()));
  return device.to_host();
}

}  // namespace chorale::testing
