#include "rollout/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "model/log_prob.h"
#include "simd/simd.h"

namespace chorale {
namespace {

// SplitMix64's finaliser (Steele et al. 2014).
constexpr std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
// A draw of exactly 0 must not choose a token of weight 0.
constexpr double smallest_target = 0x1p-1022;
constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;

Status check_finite(std::span<const float> logits) {
  if (logits.empty()) return Status::invalid_argument("no logits to sample from");
  const auto bad = std::ranges::find_if(logits, [](float x) { return !std::isfinite(x); });
  if (bad == logits.end()) return Status::ok();
  return Status::corrupt_data(
      fmt::format("the logit of token {} is {}: the model's weights are damaged or overflow",
                  bad - logits.begin(), *bad));
}

// exp((logit - max) / temperature): probabilities up to a common factor, the largest exactly 1.
std::vector<float> weights_of(std::span<const float> logits, float temperature) {
  const std::int64_t vocab = std::ssize(logits);
  const float max = simd::max(logits.data(), vocab);
  std::vector<float> weights(logits.size());
  std::ranges::transform(logits, weights.begin(), [&](float logit) { return (logit - max) / temperature; });
  simd::exp(weights.data(), weights.data(), vocab);
  return weights;
}

double total(std::span<const float> weights, std::span<const std::int32_t> tokens) {
  return std::accumulate(tokens.begin(), tokens.end(), 0.0,
                         [&](double sum, std::int32_t token) { return sum + weights[token]; });
}

// How many of `tokens` it takes, from the first on, to reach `target`; at least one, at most all.
std::size_t count_to_reach(double target, std::span<const float> weights,
                           std::span<const std::int32_t> tokens) {
  double sum = 0;
  std::size_t count = 0;
  do sum += weights[tokens[count++]];
  while (sum < target && count < tokens.size());
  return count;
}

// Where nothing is cut, tokens are taken in the vocabulary's order.
std::int32_t draw_from_all(std::span<const float> weights, double uniform) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const double target = std::max(uniform * total, smallest_target);
  double sum = 0;
  std::size_t token = 0;
  do sum += weights[token++];
  while (sum < target && token < weights.size());
  return static_cast<std::int32_t>(token) - 1;
}

// The tokens that may be drawn: the most likely come first, lower numbers first among equals.
std::vector<std::int32_t> candidates(std::span<const float> logits, std::span<const float> weights,
                                     const SamplingConfig& config) {
  std::vector<std::int32_t> tokens(logits.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  const bool cuts_k = config.top_k > 0 && config.top_k < std::ssize(tokens);
  const std::ptrdiff_t kept = cuts_k ? config.top_k : std::ssize(tokens);
  std::ranges::partial_sort(tokens, tokens.begin() + kept, [&](std::int32_t a, std::int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  tokens.resize(static_cast<std::size_t>(kept));
  if (config.top_p < 1) tokens.resize(count_to_reach(config.top_p * total(weights, tokens), weights, tokens));
  return tokens;
}

std::int32_t draw(std::span<const float> logits, const SamplingConfig& config, std::int64_t index) {
  if (config.temperature == 0)
    return static_cast<std::int32_t>(std::ranges::max_element(logits) - logits.begin());
  const std::vector<float> weights = weights_of(logits, config.temperature);
  if (config.top_p == 1 && (config.top_k <= 0 || config.top_k >= std::ssize(logits)))
    return draw_from_all(weights, uniform_draw(config.seed, index));
  const std::vector<std::int32_t> tokens = candidates(logits, weights, config);
  const double target = std::max(uniform_draw(config.seed, index) * total(weights, tokens), smallest_target);
  return tokens[count_to_reach(target, weights, tokens) - 1];
}

}  // namespace

double uniform_draw(std::uint64_t seed, std::int64_t index) {
  const std::uint64_t bits = mix(mix(seed + golden) + golden * (static_cast<std::uint64_t>(index) + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Result<Sample> sample(std::span<const float> logits, const SamplingConfig& config, std::int64_t index) {
  CHORALE_RETURN_IF_ERROR(check_finite(logits));
  const std::int32_t token = draw(logits, config, index);
  return Sample{token,
                token_log_prob(logits.data(), std::ssize(logits), config.recorded_temperature(), token)};
}

}  // namespace chorale
