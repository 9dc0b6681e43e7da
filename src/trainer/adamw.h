// AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019) over float32 master weights.
#pragma once

#include <cstdint>

#include "chorale/status.h"
#include "model/model.h"

namespace chorale {

struct AdamWConfig {
  float learning_rate = 1e-3f;
  int warmup_steps =
      0;  // the rate rises linearly over this many steps: step t has rate * min(1, t / warmup_steps)
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0;   // of matrices; norm weights are vectors and do not decay
  float max_grad_norm = 1;  // gradients are scaled down to this norm over all parameters; 0: never
  Status validate() const;  // names the field, the value and the limit
  float rate(std::int64_t step) const;  // step counts from 1
};

// One optimiser's memory: moments of every parameter and the number of steps taken.
class AdamW {
 public:
  static Result<AdamW> create(const AdamWConfig& config, const ModelConfig& model);

  // One step, with t counting from 1:
  //     g  = gradient * min(1, max_grad_norm / norm)
  //     m  = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
  //     w -= rate(t) * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay w)
  // Returns the norm before clipping. A norm that is not finite is an error, and changes nothing: a step
  // along it would destroy the weights. The bits do not depend on `threads` (0: all).
  Result<double> step(ParameterSet& parameters, const ParameterSet& gradients, int threads = 0);

  const AdamWConfig& config() const { return config_; }
  std::int64_t steps() const { return steps_; }
  const ParameterSet& first_moment() const { return first_moment_; }
  const ParameterSet& second_moment() const { return second_moment_; }
  // What a checkpoint brings back. The sets must have the model's names and shapes.
  Status restore(std::int64_t steps, ParameterSet first_moment, ParameterSet second_moment);

 private:
  AdamW() = default;
  AdamWConfig config_;
  std::int64_t steps_ = 0;
  ParameterSet first_moment_, second_moment_;
};

}  // namespace chorale
