// PackedAttention: how a trainer runs attention inside the model, over whole sequences packed end to end.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "chorale/attention.h"
#include "model/model.h"

namespace chorale {

// A role's attention of one layer. A forward-only role (ref, reward_model) has no backward. The two may be
// different implementations: a configuration may override by phase.
struct PackedLayer {
  Attention forward;
  std::optional<Attention> backward;
};

// Not thread-safe: one forward and backward at a time.
class PackedAttention final : public LayerAttention {
 public:
  // One entry per layer, all of the same problem. If that keeps keys and values in 8 bits, they are quantised
  // here as a rollout's cache does it, with scales [layers, kv_heads], so that the trainer sees the values
  // that the rollout saw. Their gradients pass to what was quantised unchanged.
  explicit PackedAttention(std::vector<PackedLayer> layers, std::vector<float> key_scales = {},
                           std::vector<float> value_scales = {})
      : layers_(std::move(layers)),
        key_scales_(std::move(key_scales)),
        value_scales_(std::move(value_scales)) {}

  // Keys and values as attention takes them.
  struct KeysAndValues {
    Tensor k_codes, v_codes;  // own what k and v show, where that is quantised
    TensorView k, v, k_scale, v_scale;
  };
  KeysAndValues prepare(int layer, const TensorView& k, const TensorView& v) const;

  // Plans the next forward and backward: once a pack, shared by the layers that run the same implementation.
  Status plan(std::span<const std::int32_t> cu_seqlens);

  Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                 const TensorView& out, const TensorView& lse) override;
  Status backward(int layer, const BackwardTensors& tensors) override;

 private:
  Status check_scales() const;
  Result<std::shared_ptr<const Plan>> plan_for(const Attention& attention, const Batch& batch);

  std::vector<PackedLayer> layers_;
  std::vector<float> key_scales_, value_scales_;
  std::vector<std::shared_ptr<const Plan>> distinct_;        // one per implementation
  std::vector<std::shared_ptr<const Plan>> forward_plans_;   // per layer
  std::vector<std::shared_ptr<const Plan>> backward_plans_;  // per layer; null where there is no backward
};

}  // namespace chorale
