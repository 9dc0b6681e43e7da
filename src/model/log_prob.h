// Log-probabilities of tokens: the one formula that the sampler records and the trainer recomputes.
#pragma once

#include <cstdint>

namespace chorale {

// What all probabilities of one softmax(logits / temperature) share: the largest scaled logit, and the sum of
// the exponentials of the distances to it, in float32 by simd::sum's tree.
struct Normalizer {
  float largest = 0, sum = 0;
};
Normalizer normalizer(const float* logits, std::int64_t vocab, float temperature);

// ln softmax(logits / temperature)[token] over `vocab` logits. The distribution is not truncated: top-k and
// top-p choose among tokens, they do not change what is recorded.
float token_log_prob(const Normalizer& normalizer, const float* logits, float temperature,
                     std::int32_t token);
float token_log_prob(const float* logits, std::int64_t vocab, float temperature, std::int32_t token);
// grad_logits[j] = grad * d token_log_prob / d logits[j]; overwrites. May be `logits`.
void token_log_prob_backward(const Normalizer& normalizer, const float* logits, std::int64_t vocab,
                             float temperature, std::int32_t token, float grad, float* grad_logits);
void token_log_prob_backward(const float* logits, std::int64_t vocab, float temperature, std::int32_t token,
                             float grad, float* grad_logits);

}  // namespace chorale
