// GRPO's arithmetic (Shao et al. 2024): advantages within a group, and the loss of one token.
#pragma once

#include <span>
#include <vector>

#include "trainer/trainer.h"

namespace chorale {

struct GrpoConfig {
  double clip_low = 0.2;  // the ratio is clipped to [1 - clip_low, 1 + clip_high]
  double clip_high = 0.2;
  double kl_coefficient = 0.01;  // weight of the KL divergence to the reference in the loss
  double advantage_epsilon = 1e-6;
};

// (r - mean) / (std + epsilon) within each run of group_size answers to one prompt; std is the sample's (n -
// 1). A group whose answers are all equally good teaches nothing: its advantages are exactly 0. group_size is
// at least 2 and divides the number of rewards.
std::vector<double> group_advantages(std::span<const double> rewards, int group_size, double epsilon);

// Schulman's k3 estimate of KL(policy || reference) from one token that the policy drew: exp(d) - d - 1 with
// d = reference - policy. Never negative, and exactly 0 where the two agree.
double kl_estimate(double log_prob, double reference_log_prob);

// One answer token's part of
//     -min(ratio A, clip(ratio) A) + kl_coefficient KL,    ratio = exp(log_prob - behaviour_log_prob)
// and its derivative by log_prob. `weight` is 1 / (answer tokens of the optimiser step): the loss is the mean
// over tokens, so long and short answers count by their length.
struct GrpoToken {
  double advantage;
  double behaviour_log_prob;  // what the sampler recorded when it drew the token
  double reference_log_prob;
};
TokenLoss grpo_loss(const GrpoConfig& config, const GrpoToken& token, double log_prob, double weight);

}  // namespace chorale
