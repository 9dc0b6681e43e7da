#include "rl/grpo.h"

#include <algorithm>
#include <cmath>

namespace chorale {

std::vector<double> group_advantages(std::span<const double> rewards, int group_size, double epsilon) {
  std::vector<double> advantages(rewards.size());
  for (std::size_t first = 0; first < rewards.size(); first += static_cast<std::size_t>(group_size)) {
    const auto group = rewards.subspan(first, static_cast<std::size_t>(group_size));
    // Said outright: the rounded mean of equal rewards may differ from them.
    if (std::ranges::all_of(group, [&](double reward) { return reward == group[0]; })) continue;
    double sum = 0;
    for (const double reward : group) sum += reward;
    const double mean = sum / group_size;
    double squares = 0;
    for (const double reward : group) squares += (reward - mean) * (reward - mean);
    const double deviation = std::sqrt(squares / (group_size - 1));
    for (std::size_t i = 0; i < group.size(); ++i)
      advantages[first + i] = (group[i] - mean) / (deviation + epsilon);
  }
  return advantages;
}

double kl_estimate(double log_prob, double reference_log_prob) {
  const double difference = reference_log_prob - log_prob;
  return std::expm1(difference) - difference;
}

TokenLoss grpo_loss(const GrpoConfig& config, const GrpoToken& token, double log_prob, double weight) {
  const double ratio = std::exp(log_prob - token.behaviour_log_prob);
  const double clipped = std::clamp(ratio, 1 - config.clip_low, 1 + config.clip_high);
  const double free_gain = ratio * token.advantage;
  const double gain = std::min(free_gain, clipped * token.advantage);
  // Where the clipped side is the smaller one it is constant: that token no longer pulls.
  const double gain_slope = gain == free_gain ? free_gain : 0;

  const double kl = kl_estimate(log_prob, token.reference_log_prob);
  const double kl_slope = -std::expm1(token.reference_log_prob - log_prob);
  return {.loss = weight * (-gain + config.kl_coefficient * kl),
          .gradient = static_cast<float>(weight * (-gain_slope + config.kl_coefficient * kl_slope))};
}

}  // namespace chorale
