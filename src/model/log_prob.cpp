#include "model/log_prob.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd/simd.h"

namespace chorale {
namespace {

// softmax(logits / temperature) as e[j] / sum, with the largest scaled logit taken off: what both functions
// start from.
struct Softmax {
  std::vector<float> scaled, exponentials;
  float sum;
};

// Scratch of this thread: the sampler calls this for every token.
const Softmax& softmax(const float* logits, std::int64_t vocab, float temperature) {
  thread_local Softmax result;
  result.scaled.resize(static_cast<std::size_t>(vocab));
  result.exponentials.resize(static_cast<std::size_t>(vocab));
  float* scaled = result.scaled.data();
  for (std::int64_t j = 0; j < vocab; ++j) scaled[j] = logits[j] / temperature;
  const float largest = simd::max(scaled, vocab);
  for (std::int64_t j = 0; j < vocab; ++j) scaled[j] -= largest;
  simd::exp(scaled, result.exponentials.data(), vocab);
  result.sum = simd::sum(result.exponentials.data(), vocab);
  return result;
}

}  // namespace

float token_log_prob(const float* logits, std::int64_t vocab, float temperature, std::int32_t token) {
  const Softmax& distribution = softmax(logits, vocab, temperature);
  float log_sum = 0;
  simd::log(&distribution.sum, &log_sum, 1);
  return distribution.scaled[static_cast<std::size_t>(token)] - log_sum;
}

void token_log_prob_backward(const float* logits, std::int64_t vocab, float temperature, std::int32_t token,
                             float grad, float* grad_logits) {
  const Softmax& distribution = softmax(logits, vocab, temperature);
  const float factor = grad / temperature;
  for (std::int64_t j = 0; j < vocab; ++j)
    grad_logits[j] = factor * ((j == token ? 1.0f : 0.0f) -
                               distribution.exponentials[static_cast<std::size_t>(j)] / distribution.sum);
}

}  // namespace chorale
