#include "implementations/cpu/cpu_attention.h"

#include <fmt/format.h>

#include "implementations/cpu/backward.h"
#include "implementations/cpu/forward.h"
#include "implementations/cpu/mutants.h"
#include "implementations/cpu/order.h"
#include "implementations/cpu/plan.h"
#include "implementations/fingerprint.h"
#include "implementations/validate.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale {
namespace tiled {

// bfloat16 problems use the processor's bfloat16 products where it has them; all else float32 chains.
Arithmetic arithmetic_for(const Problem& problem) {
  if (problem.dtype != DType::bfloat16) return Arithmetic::fp32_fma;
  switch (simd::dot_level()) {
    case simd::DotLevel::amx:
      return Arithmetic::tdpbf16;
    case simd::DotLevel::avx512_bf16:
      return Arithmetic::vdpbf16;
    case simd::DotLevel::none:
      break;
  }
  return Arithmetic::fp32_fma;
}

std::string_view name_of(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::fp32_fma:
      return "fp32-fma";
    case Arithmetic::vdpbf16:
      return "vdpbf16";
    case Arithmetic::tdpbf16:
      return "tdpbf16";
  }
  return "unknown";
}

class CpuAttention final : public Implementation {
 public:
  explicit CpuAttention(Mutant mutant) : mutant_(mutant) {}

  std::string_view name() const override { return "flash_attention_2"; }

  Status supports(const Problem& problem, const Device& device, Phase) const override {
    CHORALE_RETURN_IF_ERROR(problem.validate());
    CHORALE_RETURN_IF_ERROR(check_is_cpu(device));
    return simd::supported();
  }

  Fingerprint fingerprint(const Problem& problem, const Device&) const override {
    const Arithmetic arithmetic = arithmetic_for(problem);
    const bool amx = arithmetic == Arithmetic::tdpbf16;
    return with_kv_dtype({{{"kernel", "cpu-tiled"},
                           {"arithmetic", std::string(name_of(arithmetic))},
                           {"T", fmt::format("{}", amx ? amx_tile_keys : tile_keys)},
                           {"C", fmt::format("{}", chunk_keys)},
                           {"exp", amx ? "exp2-raised-above-256" : "exp2-difference"},
                           {"p", arithmetic == Arithmetic::fp32_fma ? "fp32" : "bf16"},
                           {"sums", amx ? "2-lane" : "16-lane-tree"}}},
                         problem);
  }

  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device& device) const override {
    CHORALE_RETURN_IF_ERROR(supports(problem, device, Phase::forward));
    CHORALE_ASSIGN_OR_RETURN(Problem bound, check_plan(problem, batch));
    return std::shared_ptr<const Plan>(std::make_shared<TiledPlan>(
        name(), std::move(bound), batch, arithmetic_for(problem), device.threads, mutant_));
  }

  Status forward(const Plan& plan, const ForwardTensors& tensors) const override {
    CHORALE_RETURN_IF_ERROR(check_forward(plan, name(), tensors));
    tiled::forward(static_cast<const TiledPlan&>(plan), tensors);
    return Status::ok();
  }

  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    CHORALE_RETURN_IF_ERROR(check_backward(plan, name(), tensors));
    tiled::backward(static_cast<const TiledPlan&>(plan), tensors);
    return Status::ok();
  }

 private:
  Mutant mutant_;
};

}  // namespace tiled

#ifdef CHORALE_CPU_MUTANTS
const Implementation& cpu_attention_mutant(Mutant mutant) {
  static const tiled::CpuAttention mutants[] = {
      tiled::CpuAttention(Mutant::none),       tiled::CpuAttention(Mutant::drop_last_key),
      tiled::CpuAttention(Mutant::drop_page),  tiled::CpuAttention(Mutant::skip_rescale),
      tiled::CpuAttention(Mutant::scale_1_01), tiled::CpuAttention(Mutant::swap_value_pages)};
  return mutants[static_cast<int>(mutant)];
}
#else
const Implementation& cpu_attention() {
  static const tiled::CpuAttention implementation(Mutant::none);
  return implementation;
}
#endif

}  // namespace chorale
