#include "model/log_prob.h"

#include "simd/simd.h"

namespace chorale {

Normalizer normalizer(const float* logits, std::int64_t vocab, float temperature) {
  // Division is monotonic, so the largest quotient is that of the largest logit.
  const float largest = simd::max(logits, vocab) / temperature;
  return {largest, simd::sum_exp(logits, vocab, temperature, largest)};
}

float token_log_prob(const Normalizer& normalizer, const float* logits, float temperature,
                     std::int32_t token) {
  float log_sum = 0;
  simd::log(&normalizer.sum, &log_sum, 1);
  return logits[token] / temperature - normalizer.largest - log_sum;
}

float token_log_prob(const float* logits, std::int64_t vocab, float temperature, std::int32_t token) {
  return token_log_prob(normalizer(logits, vocab, temperature), logits, temperature, token);
}

void token_log_prob_backward(const Normalizer& normalizer, const float* logits, std::int64_t vocab,
                             float temperature, std::int32_t token, float grad, float* grad_logits) {
  const float factor = grad / temperature;
  const float at_token = logits[token];
  simd::softmax_gradient(logits, vocab, temperature, normalizer.largest, normalizer.sum, factor, grad_logits);
  float probability = at_token / temperature - normalizer.largest;
  simd::exp(&probability, &probability, 1);
  grad_logits[token] = factor * (1.0f - probability / normalizer.sum);
}

void token_log_prob_backward(const float* logits, std::int64_t vocab, float temperature, std::int32_t token,
                             float grad, float* grad_logits) {
  token_log_prob_backward(normalizer(logits, vocab, temperature), logits, vocab, temperature, token, grad,
                          grad_logits);
}

}  // namespace chorale
