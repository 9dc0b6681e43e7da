#include "rl/history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace chorale {
namespace {

TEST(History, NumbersComeBackExactly) {
  History history;
  history.warmup_losses = {0.1, 1.0 / 3, std::numeric_limits<double>::quiet_NaN()};
  history.warmup_seconds = 1e-300;
  history.steps.push_back({.step = 1,
                           .reward = 2.0 / 3,
                           .kl = std::numeric_limits<double>::infinity(),
                           .loss = -0.1,
                           .tokens = 123456789012,
                           .different = 7,
                           .max_delta = 5e-324});
  history.evaluations = {{.step = 0, .reward = 0.1, .prompts = 5}, {.step = 1, .reward = 1, .prompts = 6}};
  history.comparison.add(-1.5f, -1.25f);
  const std::string text = to_json(history);
  const History back = history_from_json(text, "history.json").value();
  EXPECT_EQ(to_json(back), text);
  EXPECT_EQ(back.warmup_losses[1], 1.0 / 3);
  EXPECT_TRUE(std::isnan(back.warmup_losses[2]));
  EXPECT_EQ(back.steps[0].kl, std::numeric_limits<double>::infinity());
  EXPECT_EQ(back.steps[0].max_delta, 5e-324);
  EXPECT_EQ(back.steps[0].tokens, 123456789012);
  EXPECT_EQ(back.evaluations[1].prompts, 6);
  EXPECT_EQ(back.comparison.sum_delta, 0.25);
}

TEST(History, DamageIsNamed) {
  const std::string text = to_json(History{});
  for (const std::string& damaged :
       {std::string(), text.substr(0, text.size() / 2), std::string("[]"), std::string("{\"steps\": 3}")}) {
    const auto refused = history_from_json(damaged, "history.json");
    ASSERT_FALSE(refused) << damaged;
    EXPECT_THAT(refused.status().message(), ::testing::StartsWith("history.json: "));
  }
}

}  // namespace
}  // namespace chorale
