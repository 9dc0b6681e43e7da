// Log-probabilities of tokens: the one formula that the sampler records and the trainer recomputes.
#pragma once

#include <cstdint>

namespace chorale {

// ln softmax(logits / temperature)[token] over `vocab` logits, in float32 in one fixed order: the maximum,
// then the sum of exponentials by simd::sum's tree. The distribution is not truncated: top-k and top-p choose
// among tokens, they do not change what is recorded.
float token_log_prob(const float* logits, std::int64_t vocab, float temperature, std::int32_t token);
// grad_logits[j] = grad * d token_log_prob / d logits[j]; overwrites. May be `logits`.
void token_log_prob_backward(const float* logits, std::int64_t vocab, float temperature, std::int32_t token,
                             float grad, float* grad_logits);

}  // namespace chorale
