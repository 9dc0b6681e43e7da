// Float64Check: attention inside a model, compared with float64's as it runs.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "trainer/packed_attention.h"

namespace chorale {

struct Float64Comparison {
  std::int64_t rows = 0;      // compared: one for each layer, token and head
  std::int64_t outside = 0;   // of their bounds
  double worst = 0;           // the largest error as a part of its bound
  std::string first_outside;  // where, and by how much

  bool passes() const { return outside == 0; }
};

// A row may be off by what rounding the weights and the result costs (docs/conformance.md), and by 2^-14 of
// its values for the scores. Not for problems with sinks.
class Float64Check final : public LayerAttention {
 public:
  // `attention` and `problem` (its layers') must outlive this; `cu_seqlens` as it was planned with.
  static Result<std::unique_ptr<Float64Check>> create(PackedAttention& attention, const Problem& problem,
                                                      std::span<const std::int32_t> cu_seqlens);

  Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                 const TensorView& out, const TensorView& lse) override;
  const Float64Comparison& comparison() const { return comparison_; }

 private:
  Float64Check(PackedAttention& attention, std::shared_ptr<const Plan> plan)
      : attention_(attention), plan_(std::move(plan)) {}
  void compare(int layer, int sequence, int kv_head, const ForwardTensors& tensors);
  void add(int layer, int sequence, std::int64_t position, int head, double error, double bound);

  PackedAttention& attention_;
  std::shared_ptr<const Plan> plan_;  // eager's
  std::mutex mutex_;
  Float64Comparison comparison_;
};

}  // namespace chorale
