// LayerAttention over packed sequences: what a trainer does, for tests.
#pragma once

#include <memory>
#include <utility>

#include "chorale/attention.h"
#include "model/model.h"

namespace chorale::test {

class PackedAttention : public LayerAttention {
 public:
  static Result<PackedAttention> create(const Problem& problem, std::string_view implementation,
                                        std::vector<std::int32_t> cu_seqlens, int threads = 0) {
    CHORALE_ASSIGN_OR_RETURN(
        Attention attention,
        Attention::create(problem, implementation, Device::cpu(threads), {Phase::forward, Phase::backward}));
    CHORALE_ASSIGN_OR_RETURN(std::shared_ptr<const Plan> plan,
                             attention.plan(Batch::packed(std::move(cu_seqlens))));
    return PackedAttention(std::move(attention), std::move(plan));
  }
  Status forward(int, const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& out,
                 const TensorView& lse) override {
    return attention_.forward(*plan_, {.q = q, .k = k, .v = v, .out = out, .lse = lse});
  }
  Status backward(int, const BackwardTensors& tensors) override {
    return attention_.backward(*plan_, tensors);
  }

 private:
  PackedAttention(Attention attention, std::shared_ptr<const Plan> plan)
      : attention_(std::move(attention)), plan_(std::move(plan)) {}
  Attention attention_;
  std::shared_ptr<const Plan> plan_;
};

}  // namespace chorale::test
