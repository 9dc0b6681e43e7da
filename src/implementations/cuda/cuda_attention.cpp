#include "implementations/cuda/cuda_attention.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "implementations/cuda/cuda_plan.h"
#include "implementations/cuda/nvrtc.h"
#include "implementations/cuda/order.h"
#include "implementations/fingerprint.h"
#include "implementations/validate.h"
#include "mask/emit_cuda.h"

namespace chorale {
namespace cuda {
namespace {

constexpr std::array head_dims = {64, 96, 128, 192, 256};

Status check_head_dims(const Problem& problem) {
  if (std::find(head_dims.begin(), head_dims.end(), problem.head_dim) == head_dims.end())
    return Status::unsupported(
        fmt::format("head_dim {}: must be one of {}", problem.head_dim, fmt::join(head_dims, ", ")));
  if (problem.value_dim() == problem.head_dim || (problem.head_dim == 192 && problem.value_dim() == 128))
    return Status::ok();
  return Status::unsupported(
      fmt::format("value_head_dim {} with head_dim {}: must be the same, or 128 with 192",
                  problem.value_dim(), problem.head_dim));
}

}  // namespace

Status supports_problem(const Problem& problem) {
  CHORALE_RETURN_IF_ERROR(problem.validate());
  CHORALE_RETURN_IF_ERROR(check_head_dims(problem));
  if (problem.dtype == DType::float32)
    return Status::unsupported("dtype float32: must be bfloat16 or float16");
  if (problem.group_size() > block_rows)
    return Status::unsupported(
        fmt::format("{} query heads for each KV head: must be at most {}", problem.group_size(), block_rows));
  // A maximum of raw scores is one of scaled scores only then.
  if (!(problem.scale_or_default() > 0))
    return Status::unsupported(fmt::format("scale {}: must be above 0", problem.scale_or_default()));
  if (problem.first_query_head + problem.query_heads > cuda_heads)
    return Status::unsupported(fmt::format("query head {}: must be below {}",
                                           problem.first_query_head + problem.query_heads, cuda_heads));
  return check_cuda_programs(problem.mask.program(), problem.score.program());
}

namespace {

class CudaAttention final : public Implementation {
 public:
  std::string_view name() const override { return "flash_attention_3"; }

  Status supports(const Problem& problem, const Device& device, Phase phase) const override {
    CHORALE_RETURN_IF_ERROR(problem.validate());
    if (device.kind != Device::Kind::cuda)
      return Status::unsupported("runs on an NVIDIA GPU, not on the CPU");
    CHORALE_ASSIGN_OR_RETURN(const Gpu* gpu, Gpu::get(device.ordinal));
    if (gpu->compute_major() != 9 || gpu->compute_minor() != 0)
      return Status::unsupported(fmt::format("{} has compute capability {}.{}: must be 9.0 (Hopper)",
                                             gpu->name(), gpu->compute_major(), gpu->compute_minor()));
    if (phase == Phase::backward) return no_backward();
    CHORALE_RETURN_IF_ERROR(supports_problem(problem));
    const auto nvrtc = Nvrtc::get();
    return nvrtc ? Status::ok() : nvrtc.status();
  }

  Fingerprint fingerprint(const Problem& problem, const Device&) const override {
    const int head_dim = problem.head_dim, value_dim = problem.value_dim();
    return with_kv_dtype({{{"kernel", "sm90"},
                           {"arithmetic", problem.dtype == DType::bfloat16 ? "wgmma-bf16" : "wgmma-fp16"},
                           {"T", fmt::format("{}", tile_keys(head_dim, value_dim))},
                           {"C", fmt::format("{}", chunk_keys(value_dim))},
                           {"exp", "ex2-raised-by-8"},
                           {"p", problem.dtype == DType::bfloat16 ? "bf16" : "fp16"},
                           {"sums", "quad-tree"}}},
                         problem);
  }

  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device& device) const override {
    CHORALE_RETURN_IF_ERROR(supports(problem, device, Phase::forward));
    CHORALE_ASSIGN_OR_RETURN(Gpu * gpu, Gpu::get(device.ordinal));
    CHORALE_ASSIGN_OR_RETURN(
        std::shared_ptr<CudaPlan> made,
        CudaPlan::create(name(), *gpu, problem, batch, order_of(problem.head_dim, problem.value_dim())));
    return std::shared_ptr<const Plan>(std::move(made));
  }

  Status forward(const Plan& plan, const ForwardTensors& tensors) const override {
    CHORALE_RETURN_IF_ERROR(check_forward(plan, name(), tensors, Memory::device));
    return static_cast<const CudaPlan&>(plan).forward(tensors);
  }

  Status backward(const Plan&, const BackwardTensors&) const override { return no_backward(); }

 private:
  static Status no_backward() {
    return Status::unsupported("has no backward pass on a GPU yet: forward, prefill and decode only");
  }
};

}  // namespace
}  // namespace cuda

const Implementation& cuda_attention() {
  static const cuda::CudaAttention implementation;
  return implementation;
}

}  // namespace chorale
