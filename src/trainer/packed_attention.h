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
  // One entry per layer, all of the same problem.
  explicit PackedAttention(std::vector<PackedLayer> layers) : layers_(std::move(layers)) {}

  // Plans the next forward and backward: once a pack, shared by the layers that run the same implementation.
  Status plan(std::span<const std::int32_t> cu_seqlens);

  Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                 const TensorView& out, const TensorView& lse) override;
  Status backward(int layer, const BackwardTensors& tensors) override;

 private:
  Result<std::shared_ptr<const Plan>> plan_for(const Attention& attention, const Batch& batch);

  std::vector<PackedLayer> layers_;
  std::vector<std::shared_ptr<const Plan>> distinct_;        // one per implementation
  std::vector<std::shared_ptr<const Plan>> forward_plans_;   // per layer
  std::vector<std::shared_ptr<const Plan>> backward_plans_;  // per layer; null where there is no backward
};

}  // namespace chorale
