#include "trainer/packed_attention.h"

#include <fmt/format.h>

namespace chorale {

Result<std::shared_ptr<const Plan>> PackedAttention::plan_for(const Attention& attention,
                                                              const Batch& batch) {
  for (const auto& plan : distinct_)
    if (plan->implementation() == attention.implementation().name()) return plan;
  CHORALE_ASSIGN_OR_RETURN(auto plan, attention.plan(batch));
  distinct_.push_back(plan);
  return plan;
}

Status PackedAttention::plan(std::span<const std::int32_t> cu_seqlens) {
  const Batch batch = Batch::packed({cu_seqlens.begin(), cu_seqlens.end()});
  distinct_.clear();
  forward_plans_.clear();
  backward_plans_.clear();
  for (const PackedLayer& layer : layers_) {
    CHORALE_ASSIGN_OR_RETURN(forward_plans_.emplace_back(), plan_for(layer.forward, batch));
    backward_plans_.emplace_back();
    if (layer.backward) {
      CHORALE_ASSIGN_OR_RETURN(backward_plans_.back(), plan_for(*layer.backward, batch));
    }
  }
  return Status::ok();
}

Status PackedAttention::forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                                const TensorView& out, const TensorView& lse) {
  if (layer < 0 || layer >= static_cast<int>(forward_plans_.size()))
    return Status::out_of_range(fmt::format("layer {}: {} layers are planned", layer, forward_plans_.size()));
  return layers_[layer].forward.forward(*forward_plans_[layer],
                                        {.q = q, .k = k, .v = v, .out = out, .lse = lse, .sinks = {}});
}

Status PackedAttention::backward(int layer, const BackwardTensors& tensors) {
  if (layer < 0 || layer >= static_cast<int>(backward_plans_.size()) || backward_plans_[layer] == nullptr)
    return Status::unsupported(fmt::format("layer {} has no attention to run backward", layer));
  return layers_[layer].backward->backward(*backward_plans_[layer], tensors);
}

}  // namespace chorale
