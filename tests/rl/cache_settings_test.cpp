// Whole runs with the cache's settings: the comparison of rollout and trainer stays exact.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/files.h"
#include "rl/run.h"

namespace chorale {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Few pages, so that sequences are preempted.
constexpr std::string_view tiny_run = R"(name: tiny
seed: 3
parity: bitwise
model:
  hidden_size: 16
  intermediate_size: 24
  num_hidden_layers: 2
  num_attention_heads: 2
  num_key_value_heads: 1
  head_dim: 8
actor: {attn_implementation: flash_attention_2}
rollout: {attn_implementation: flash_attention_2, pages: 10, page_size: 2, max_running: 16, tokens_per_step: 32}
ref: {attn_implementation: flash_attention_2}
task: {min_digits: 1, max_digits: 2}
warmup: {steps: 2, prompts: 8, learning_rate: 0.01}
grpo: {steps: 2, prompts: 4, group_size: 4}
trainer: {tokens_per_pack: 64, evaluation_prompts: 5}
)";

class CacheSettingsTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(root_);
    ASSERT_TRUE(write_file(root_ + "/run.yaml", tiny_run).is_ok());
  }
  void TearDown() override { fs::remove_all(root_); }

  Result<std::unique_ptr<chorale::Run>> prepare(std::vector<std::string> overrides) {
    return chorale::Run::prepare({.config_file = root_ + "/run.yaml",
                                  .overrides = std::move(overrides),
                                  .output = root_ + "/out" + std::to_string(runs_++),
                                  .command = "chorale train run.yaml"});
  }
  std::unique_ptr<chorale::Run> finished(std::vector<std::string> overrides) {
    auto run = prepare(std::move(overrides)).value();
    EXPECT_EQ(run->train().value(), RunEnd::done);
    EXPECT_GT(run->history().comparison.tokens, 50);
    EXPECT_EQ(run->history().comparison.different, 0);
    return run;
  }
  static bool same_weights(const chorale::Run& a, const chorale::Run& b) {
    const ParameterSet &x = a.trainer().parameters(), &y = b.trainer().parameters();
    for (std::size_t i = 0; i < x.size(); ++i)
      if (std::memcmp(x[i].value.view().data, y[i].value.view().data, x[i].value.bytes()) != 0) return false;
    return x.size() == y.size();
  }

  const std::string root_ =
      fs::temp_directory_path() / ("chorale_cache_settings_" + std::to_string(getpid()));
  int runs_ = 0;
};

TEST_F(CacheSettingsTest, AnEightBitRolloutAgreesWithItsTrainerToTheBit) {
  const auto plain = finished({});
  const auto eight_bits = finished({"rollout.kv_cache_dtype=float8_e4m3", "rollout.kv_cache_scale=0.5"});
  EXPECT_FALSE(same_weights(*plain, *eight_bits)) << "control: the cache's type takes part in the training";
  EXPECT_THAT(eight_bits->resolved().explain(), HasSubstr("float8_e4m3")) << "the fingerprint says so";
}

TEST_F(CacheSettingsTest, SwapTrainsTheSameWeights) {
  EXPECT_TRUE(same_weights(*finished({}), *finished({"rollout.preemption=swap"})));
}

TEST_F(CacheSettingsTest, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(prepare({"rollout.kv_cache_dtype=int4"}).status().message(),
              HasSubstr("'int4' is not known (known here: auto, float8_e4m3)"));
  EXPECT_THAT(prepare({"rollout.preemption=drop"}).status().message(),
              HasSubstr("is 'drop': must be recompute or swap"));
  EXPECT_FALSE(prepare({"rollout.kv_cache_scale=0"}).has_value());
}

}  // namespace
}  // namespace chorale
