#include "implementations/cpu/cpu_attention.h"

#include <fmt/format.h>

#include "implementations/cpu/backward.h"
#include "implementations/cpu/forward.h"
#include "implementations/cpu/mutants.h"
#include "implementations/cpu/order.h"
#include "implementations/cpu/plan.h"
#include "implementations/fingerprint.h"
#include "implementations/validate.h"
#include "simd/simd.h"

namespace chorale {
namespace tiled {

class CpuAttention final : public Implementation {
 public:
  explicit CpuAttention(Mutant mutant) : mutant_(mutant) {}

  std::string_view name() const override { return "flash_attention_2"; }

  Status supports(const Problem& problem, const Device&, Phase) const override {
    CHORALE_RETURN_IF_ERROR(problem.validate());
    return simd::supported();
  }

  Fingerprint fingerprint(const Problem& problem, const Device&) const override {
    return with_kv_dtype({{{"kernel", "cpu-tiled"},
                           {"arithmetic", "fp32-fma"},
                           {"T", fmt::format("{}", tile_keys)},
                           {"C", fmt::format("{}", chunk_keys)},
                           {"exp", "exp2-difference"},
                           {"p", "fp32"},
                           {"sums", "16-lane-tree"}}},
                         problem);
  }

  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch, const Device& device) const override {
    CHORALE_RETURN_IF_ERROR(supports(problem, device, Phase::forward));
    CHORALE_ASSIGN_OR_RETURN(Problem bound, check_plan(problem, batch));
    return std::shared_ptr<const Plan>(std::make_shared<TiledPlan>(name(), std::move(bound), batch, device.threads, mutant_));
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
  static const tiled::CpuAttention mutants[] = {tiled::CpuAttention(Mutant::none),        tiled::CpuAttention(Mutant::drop_last_key),
                                                tiled::CpuAttention(Mutant::drop_page),   tiled::CpuAttention(Mutant::skip_rescale),
                                                tiled::CpuAttention(Mutant::scale_1_01),  tiled::CpuAttention(Mutant::swap_value_pages)};
  return mutants[static_cast<int>(mutant)];
}
#else
const Implementation& cpu_attention() {
  static const tiled::CpuAttention implementation(Mutant::none);
  return implementation;
}
#endif

}  // namespace chorale
