#include "trainer/packed_attention.h"

#include <fmt/format.h>

#include "kv/quantise.h"

namespace chorale {

Result<std::shared_ptr<const Plan>> PackedAttention::plan_for(const Attention& attention,
                                                              const Batch& batch) {
  for (const auto& plan : distinct_)
    if (plan->implementation() == attention.implementation().name()) return plan;
  CHORALE_ASSIGN_OR_RETURN(auto plan, attention.plan(batch));
  distinct_.push_back(plan);
  return plan;
}

Status PackedAttention::check_scales() const {
  if (layers_.empty()) return Status::ok();
  const Problem& problem = layers_[0].forward.problem();
  const std::size_t wanted =
      problem.has_kv_scales() ? layers_.size() * static_cast<std::size_t>(problem.kv_heads) : 0;
  for (const auto& [name, scales] :
       {std::pair("key_scales", &key_scales_), std::pair("value_scales", &value_scales_)})
    if (scales->size() != wanted)
      return Status::invalid_argument(fmt::format("{} has {} elements: must have {} for {} layers of {}",
                                                  name, scales->size(), wanted, layers_.size(),
                                                  problem.describe()));
  return Status::ok();
}

PackedAttention::KeysAndValues PackedAttention::prepare(int layer, const TensorView& k,
                                                        const TensorView& v) const {
  if (key_scales_.empty()) return {{}, {}, k, v, {}, {}};
  const auto heads = key_scales_.size() / layers_.size();
  const auto first = static_cast<std::size_t>(layer) * heads;
  const auto k_scales = std::span(key_scales_).subspan(first, heads),
             v_scales = std::span(value_scales_).subspan(first, heads);
  const auto view = [](std::span<const float> scales) {
    return TensorView::contiguous(scales.data(), DType::float32, {std::ssize(scales)});
  };
  const Tensor k_codes = quantise(k, k_scales), v_codes = quantise(v, v_scales);
  return {k_codes, v_codes, k_codes, v_codes, view(k_scales), view(v_scales)};
}

Status PackedAttention::plan(std::span<const std::int32_t> cu_seqlens) {
  CHORALE_RETURN_IF_ERROR(check_scales());
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
  const KeysAndValues kv = prepare(layer, k, v);
  return layers_[layer].forward.forward(*forward_plans_[layer], {.q = q,
                                                                 .k = kv.k,
                                                                 .v = kv.v,
                                                                 .out = out,
                                                                 .lse = lse,
                                                                 .sinks = {},
                                                                 .k_scale = kv.k_scale,
                                                                 .v_scale = kv.v_scale});
}

Status PackedAttention::backward(int layer, const BackwardTensors& tensors) {
  if (layer < 0 || layer >= static_cast<int>(backward_plans_.size()) || backward_plans_[layer] == nullptr)
    return Status::unsupported(fmt::format("layer {} has no attention to run backward", layer));
  const KeysAndValues kv = prepare(layer, tensors.k, tensors.v);
  BackwardTensors prepared = tensors;
  prepared.k = kv.k;
  prepared.v = kv.v;
  prepared.k_scale = kv.k_scale;
  prepared.v_scale = kv.v_scale;
  return layers_[layer].backward->backward(*backward_plans_[layer], prepared);
}

}  // namespace chorale
