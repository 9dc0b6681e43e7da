// The sampler: a row of logits in, a token and its log-probability out.
#pragma once

#include <cstdint>
#include <span>

#include "chorale/status.h"
#include "rollout/request.h"

namespace chorale {

struct Sample {
  std::int32_t token = 0;
  float log_prob = 0;
};

// The draw of token number `index` of a request (0 for the first one generated): a pure function of its
// arguments. Fails if a logit is not finite.
Result<Sample> sample(std::span<const float> logits, const SamplingConfig& config, std::int64_t index);

// The number of [0, 1) that `sample` draws with: a hash of seed and index, so there is no state that other
// requests, preemption or a restart could change.
double uniform_draw(std::uint64_t seed, std::int64_t index);

}  // namespace chorale
