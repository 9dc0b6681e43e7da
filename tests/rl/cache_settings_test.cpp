// Whole runs with the cache's settings: the comparison of rollout and trainer stays exact.
#include <gmock/gmock.h>

#include "rl/fixture.h"

namespace chorale {
namespace {

using ::testing::HasSubstr;

class CacheSettingsTest : public TinyRunTest {
 protected:
  // Few pages, so that sequences are preempted.
  RunOptions with(std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), {"rollout.pages=10", "rollout.page_size=2"});
    return options("out" + std::to_string(runs_++), std::move(overrides));
  }
  std::unique_ptr<chorale::Run> compared(std::vector<std::string> overrides) {
    auto run = finished(with(std::move(overrides)));
    EXPECT_GT(run->history().comparison.tokens, 50);
    EXPECT_EQ(run->history().comparison.different, 0);
    EXPECT_GT(run->rollout_stats().preemptions, 0) << "a test of nothing";
    return run;
  }
  static bool same_weights(const chorale::Run& a, const chorale::Run& b) {
    return same_bits(a.trainer().parameters(), b.trainer().parameters());
  }

 private:
  int runs_ = 0;
};

TEST_F(CacheSettingsTest, AnEightBitRolloutAgreesWithItsTrainerToTheBit) {
  const auto plain = compared({});
  const auto eight_bits = compared({"rollout.kv_cache_dtype=float8_e4m3", "rollout.kv_cache_scale=0.5"});
  EXPECT_FALSE(same_weights(*plain, *eight_bits)) << "control: the cache's type takes part in the training";
  EXPECT_THAT(eight_bits->resolved().explain(), HasSubstr("float8_e4m3")) << "the fingerprint says so";
}

TEST_F(CacheSettingsTest, SwapTrainsTheSameWeights) {
  EXPECT_TRUE(same_weights(*compared({}), *compared({"rollout.preemption=swap"})));
}

// Of each group the first computes the prompt, "1+2+3+4="; the others take all of it over but the last token,
// from which they draw.
TEST_F(CacheSettingsTest, AGroupSharesItsPrompt) {
  constexpr std::int64_t steps = 4, groups = 4, others = 3, prompt = 8;
  const auto run = finished(options("out", {"rollout.page_size=1", "rollout.pages=400", "task.min_digits=4",
                                            "task.max_digits=4", "grpo.prompts=4", "grpo.group_size=4"}));
  EXPECT_GE(run->rollout_stats().shared_tokens, steps * groups * others * (prompt - 1));
  EXPECT_EQ(run->rollout_stats().preemptions, 0) << "each token was shared once";
  EXPECT_EQ(run->history().comparison.different, 0);
}

TEST_F(CacheSettingsTest, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(refusal(with({"rollout.kv_cache_dtype=int4"})),
              HasSubstr("'int4' is not known (known here: auto, float8_e4m3)"));
  EXPECT_THAT(refusal(with({"rollout.preemption=drop"})), HasSubstr("is 'drop': must be recompute or swap"));
  EXPECT_NE(refusal(with({"rollout.kv_cache_scale=0"})), "");
}

}  // namespace
}  // namespace chorale
