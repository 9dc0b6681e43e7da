// Request: what a caller wants generated. Completion: what it gets.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "chorale/status.h"

namespace chorale {

// Tokens are drawn from softmax(logits / temperature), cut to the top_k most likely, of these to the fewest
// that hold top_p of the probability. What a request draws depends on nothing but its seed and its own
// logits.
struct SamplingConfig {
  // Beyond these, logits / temperature could leave float32 or lose all difference.
  static constexpr float min_temperature = 1e-3f, max_temperature = 1e3f;

  float temperature = 1;   // 0: always the most likely token, the lowest number among equals
  std::int32_t top_k = 0;  // 0: all tokens
  float top_p = 1;         // more than 0, at most 1
  std::uint64_t seed = 0;
  Status validate() const;  // names the field, the value and the limit
  // Of the distribution that log-probabilities are recorded in: 1 for greedy requests, whose own has no use.
  float recorded_temperature() const { return temperature == 0 ? 1 : temperature; }
};

using RequestId = std::int64_t;

struct Request {
  RequestId id = 0;  // the caller's; no two unfinished requests may share one
  std::vector<std::int32_t> prompt;
  std::int64_t max_new_tokens = 0;
  SamplingConfig sampling;
  std::vector<std::int32_t> stop_tokens;
  // Against a model's vocabulary and longest sequence. Names the request, what is wrong, the value and the
  // limit.
  Status validate(std::int64_t vocab_size, std::int64_t max_positions) const;
};

enum class FinishReason {
  stop,    // a stop token was drawn; it is the last token
  length,  // max_new_tokens were drawn
};
std::string_view name(FinishReason reason);

struct Completion {
  RequestId id = 0;
  std::vector<std::int32_t> tokens;  // what was drawn, without the prompt
  std::vector<float> log_probs;      // of each token: token_log_prob at the recorded temperature
  FinishReason reason = FinishReason::length;
  std::int64_t preemptions = 0;    // how often its pages were taken away
  std::int64_t shared_tokens = 0;  // positions taken over from another sequence's pages, not computed
};

}  // namespace chorale
