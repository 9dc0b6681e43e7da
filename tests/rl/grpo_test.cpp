#include "rl/grpo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace chorale {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

TEST(Grpo, AdvantagesAreStandardScoresWithinTheGroup) {
  const std::vector<double> rewards{1, 0, 0, 1, 5, 2, 2, 3};
  const auto advantages = group_advantages(rewards, 4, 1e-6);
  // First group: mean 0.5, sample deviation sqrt(1/3). Second: mean 3, deviation sqrt(6/3).
  const double first = 0.5 / (std::sqrt(1.0 / 3) + 1e-6), unit = 1 / (std::sqrt(2.0) + 1e-6);
  const std::vector<double> expected{first, -first, -first, first, 2 * unit, -unit, -unit, 0};
  for (std::size_t i = 0; i < rewards.size(); ++i) EXPECT_NEAR(advantages[i], expected[i], 1e-12) << i;
}

TEST(Grpo, EqualRewardsTeachNothing) {
  EXPECT_THAT(group_advantages(std::vector<double>(6, 0.1), 3, 1e-6), Each(0.0));
}

TEST(Grpo, KlEstimateIsZeroAtAgreementAndNeverNegative) {
  EXPECT_EQ(kl_estimate(-1.25, -1.25), 0);
  EXPECT_NEAR(kl_estimate(-1, -1.5), std::exp(-0.5) + 0.5 - 1, 1e-15);
  EXPECT_GT(kl_estimate(-1, -1 + 1e-7), 0) << "exp(d) - d - 1 must not cancel";
  EXPECT_GT(kl_estimate(-1, -1 - 1e-7), 0);
}

// Expectation over tokens drawn from the policy is the divergence itself.
TEST(Grpo, KlEstimateAveragesToTheDivergence) {
  const std::vector<double> policy{0.5, 0.3, 0.15, 0.05}, reference{0.2, 0.2, 0.2, 0.4};
  double divergence = 0, expectation = 0;
  for (std::size_t i = 0; i < policy.size(); ++i) {
    divergence += policy[i] * std::log(policy[i] / reference[i]);
    expectation += policy[i] * kl_estimate(std::log(policy[i]), std::log(reference[i]));
  }
  EXPECT_NEAR(expectation, divergence, 1e-12);
}

// The loss as the papers write it, for one token.
double plain_loss(const GrpoConfig& config, const GrpoToken& token, double log_prob, double weight) {
  const double ratio = std::exp(log_prob - token.behaviour_log_prob);
  const double clipped = std::max(1 - config.clip_low, std::min(1 + config.clip_high, ratio));
  const double d = token.reference_log_prob - log_prob;
  return weight * (-std::min(ratio * token.advantage, clipped * token.advantage) +
                   config.kl_coefficient * (std::exp(d) - d - 1));
}

TEST(Grpo, LossAndGradientAgreeWithFiniteDifferences) {
  const GrpoConfig config{.clip_low = 0.2, .clip_high = 0.28, .kl_coefficient = 0.5};
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(-1, 1);
  int clipped = 0, free = 0;
  for (int i = 0; i < 2000; ++i) {
    const GrpoToken token{.advantage = 2 * uniform(random),
                          .behaviour_log_prob = uniform(random) - 2,
                          .reference_log_prob = uniform(random) - 2};
    const double log_prob = token.behaviour_log_prob + 0.6 * uniform(random);
    const double ratio = std::exp(log_prob - token.behaviour_log_prob);
    if (std::abs(ratio - 0.8) < 1e-3 || std::abs(ratio - 1.28) < 1e-3) continue;  // a kink has no derivative
    const TokenLoss result = grpo_loss(config, token, log_prob, 0.25);
    EXPECT_NEAR(result.loss, plain_loss(config, token, log_prob, 0.25), 1e-12);
    const double h = 1e-5;
    const double slope =
        (plain_loss(config, token, log_prob + h, 0.25) - plain_loss(config, token, log_prob - h, 0.25)) /
        (2 * h);
    EXPECT_NEAR(result.gradient, slope, 1e-6) << "ratio " << ratio << ", advantage " << token.advantage;
    const bool is_clipped = (token.advantage > 0 && ratio > 1.28) || (token.advantage < 0 && ratio < 0.8);
    (is_clipped ? clipped : free) += 1;
  }
  EXPECT_GT(clipped, 100);
  EXPECT_GT(free, 100);
}

TEST(Grpo, OnPolicyGradientIsTheAdvantage) {
  const GrpoToken token{.advantage = 1.5, .behaviour_log_prob = -0.7, .reference_log_prob = -0.7};
  EXPECT_FLOAT_EQ(grpo_loss({.kl_coefficient = 0.1}, token, -0.7, 0.5).gradient, -0.75f);
}

}  // namespace
}  // namespace chorale
