#include "rollout/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "model/log_prob.h"

namespace chorale {
namespace {

using testing::HasSubstr;
constexpr float infinity = std::numeric_limits<float>::infinity();

std::int32_t token(const std::vector<float>& logits, const SamplingConfig& config, std::int64_t index = 0) {
  return sample(logits, config, index).value().token;
}

// How often each token is drawn, as a fraction.
std::map<std::int32_t, double> frequencies(const std::vector<float>& logits, const SamplingConfig& config) {
  constexpr int draws = 40000;
  std::map<std::int32_t, double> counts;
  for (int i = 0; i < draws; ++i) counts[token(logits, config, i)] += 1.0 / draws;
  return counts;
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(token({0.f, 3.f, -1.f, 3.f}, {.temperature = 0}), 1);
  EXPECT_EQ(token({-2.f}, {.temperature = 0}), 0);
  EXPECT_EQ(token({0.f, 3.f, -1.f, 3.f}, {.temperature = 0, .top_k = 3, .top_p = 0.1f}), 1);
}

TEST(Sampler, DrawsInProportion) {
  const std::vector<float> logits{1.f, 0.f, 2.f, -1.f};
  for (const float temperature : {0.5f, 1.f, 3.f}) {
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit / temperature);
    const auto counts = frequencies(logits, {.temperature = temperature, .seed = 5});
    for (std::int32_t i = 0; i < 4; ++i)
      EXPECT_NEAR(counts.at(i), std::exp(logits[i] / temperature) / sum, 0.01) << temperature;
  }
}

TEST(Sampler, TopKKeepsTheMostLikelyAndLowerNumbersAmongEquals) {
  const std::vector<float> logits{1.f, 2.f, 1.f, 0.f, 1.f};
  const auto counts = frequencies(logits, {.top_k = 3, .seed = 6});
  EXPECT_THAT(counts, testing::SizeIs(3));
  const double e = std::exp(1.0);
  EXPECT_NEAR(counts.at(1), e / (e + 2), 0.01);
  EXPECT_NEAR(counts.at(0), 1 / (e + 2), 0.01);
  EXPECT_NEAR(counts.at(2), 1 / (e + 2), 0.01);
  EXPECT_THAT(frequencies(logits, {.top_k = 5, .seed = 6}), testing::SizeIs(5));
  EXPECT_THAT(frequencies(logits, {.top_k = 99, .seed = 6}), testing::SizeIs(5));
  EXPECT_EQ(token(logits, {.top_k = 1}), 1);
}

TEST(Sampler, TopPKeepsTheFewestTokensThatHoldIt) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::vector<float> logits{std::log(2.f), std::log(8.f), std::log(4.f), std::log(2.f)};
  const auto kept = [&](SamplingConfig config) {
    std::set<std::int32_t> tokens;
    for (const auto& [drawn, count] : frequencies(logits, config)) tokens.insert(drawn);
    return tokens;
  };
  EXPECT_THAT(kept({.top_p = 0.01f}), testing::ElementsAre(1));
  EXPECT_THAT(kept({.top_p = 0.49f}), testing::ElementsAre(1));
  EXPECT_THAT(kept({.top_p = 0.51f}), testing::ElementsAre(1, 2));
  EXPECT_THAT(kept({.top_p = 0.8f}), testing::ElementsAre(0, 1, 2));
  EXPECT_THAT(kept({.top_p = 0.9f}), testing::ElementsAre(0, 1, 2, 3));
  // top_p is of what top_k left: 0.5 of 0.75 is two thirds.
  EXPECT_THAT(kept({.top_k = 2, .top_p = 0.6f}), testing::ElementsAre(1));
  EXPECT_THAT(kept({.top_k = 2, .top_p = 0.7f}), testing::ElementsAre(1, 2));
}

TEST(Sampler, RecordsTheUncutLogProbability) {
  const std::vector<float> logits{1.f, 0.f, 2.f, -1.f};
  const Sample cut = sample(logits, {.temperature = 0.7f, .top_k = 2, .top_p = 0.9f, .seed = 3}, 8).value();
  EXPECT_EQ(cut.log_prob, token_log_prob(logits.data(), 4, 0.7f, cut.token));
  const Sample greedy = sample(logits, {.temperature = 0}, 0).value();
  EXPECT_EQ(greedy.log_prob, token_log_prob(logits.data(), 4, 1.f, 2))
      << "greedy requests record at temperature 1";
}

TEST(Sampler, NeverDrawsTheImpossible) {
  const std::vector<float> logits{-1000.f, 5.f, -1000.f, 5.f, -1000.f};
  for (std::int64_t i = 0; i < 2000; ++i) {
    const std::int32_t drawn = token(logits, {.seed = 1}, i);
    ASSERT_TRUE(drawn == 1 || drawn == 3);
  }
}

TEST(Sampler, DrawsDependOnSeedAndIndexAlone) {
  std::set<double> draws;
  double sum = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    for (std::int64_t index = 0; index < 50; ++index) {
      const double draw = uniform_draw(seed, index);
      EXPECT_EQ(draw, uniform_draw(seed, index));
      EXPECT_GE(draw, 0);
      EXPECT_LT(draw, 1);
      draws.insert(draw);
      sum += draw;
    }
  }
  EXPECT_EQ(draws.size(), 2500u) << "neighbouring seeds and indices do not collide";
  EXPECT_NEAR(sum / 2500, 0.5, 0.02);
}

TEST(Sampler, RefusesLogitsThatAreNotNumbers) {
  for (const float bad : {std::nanf(""), infinity, -infinity}) {
    const auto result = sample(std::vector{0.f, bad}, {}, 0);
    EXPECT_EQ(result.status().code(), Code::corrupt_data);
    EXPECT_THAT(result.status().message(), HasSubstr("the logit of token 1"));
  }
  EXPECT_FALSE(sample({}, {}, 0));
}

TEST(SamplingConfig, NamesWhatIsWrong) {
  const auto message = [](SamplingConfig config) { return config.validate().message(); };
  EXPECT_TRUE((SamplingConfig{.temperature = 0, .top_k = 0, .top_p = 1}).validate().is_ok());
  for (const float bad : {-1.f, 1e-4f, 1001.f, infinity, std::nanf("")})
    EXPECT_THAT(message({.temperature = bad}), HasSubstr("must be 0 (greedy) or from 0.001 to 1000"));
  EXPECT_THAT(message({.top_k = -3}), HasSubstr("top_k -3: must be at least 0"));
  for (const float bad : {0.f, -0.5f, 1.5f, std::nanf("")})
    EXPECT_THAT(message({.top_p = bad}), HasSubstr("must be more than 0 and at most 1"));
}

}  // namespace
}  // namespace chorale
