// Whole runs of a tiny model in a folder of their own.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/files.h"
#include "rl/run.h"

namespace chorale {

inline constexpr std::string_view tiny_run = R"(name: tiny
seed: 3
parity: bitwise
model:
  hidden_size: 16
  intermediate_size: 24
  num_hidden_layers: 2
  num_attention_heads: 2
  num_key_value_heads: 1
  head_dim: 8
actor:
  attn_implementation: flash_attention_2
rollout:
  attn_implementation: flash_attention_2
  pages: 64
  page_size: 4
  max_running: 16
  tokens_per_step: 32
ref: {attn_implementation: flash_attention_2}
critic: {attn_implementation: flash_attention_2}
reward_model: {attn_implementation: flash_attention_2}
task: {min_digits: 1, max_digits: 2}
warmup: {steps: 3, prompts: 8, learning_rate: 0.01}
grpo: {steps: 4, prompts: 4, group_size: 4, epochs: 2, minibatches: 2}
optimizer: {learning_rate: 0.003}
trainer: {tokens_per_pack: 64, evaluation_prompts: 5, evaluate_every: 2}
)";

inline bool same_bits(const ParameterSet& a, const ParameterSet& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(a[i].value.view().data, b[i].value.view().data, a[i].value.bytes()) != 0) return false;
  return a.size() == b.size();
}

class TinyRunTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(root_);
    ASSERT_TRUE(write_file(root_ + "/run.yaml", tiny_run).is_ok());
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // A stop is requested once `stop_after` steps (of warm-up and GRPO together) are done.
  RunOptions options(std::string output, std::vector<std::string> overrides = {}, int stop_after = 1000) {
    steps_ = 0;
    return {.config_file = root_ + "/run.yaml",
            .overrides = std::move(overrides),
            .output = root_ + "/" + output,
            .command = "chorale train <run.yaml>",
            .print = [this](std::string_view line) { printed_ += std::string(line) + "\n"; },
            .stop_requested = [this, stop_after] { return ++steps_ >= stop_after; }};
  }
  std::unique_ptr<chorale::Run> finished(const RunOptions& options) {
    auto run = chorale::Run::prepare(options).value();
    EXPECT_EQ(run->train().value(), RunEnd::done);
    return run;
  }
  std::string refusal(const RunOptions& options) {
    const auto run = chorale::Run::prepare(options);
    return run ? "" : run.status().message();
  }

  const std::string root_ =
      std::filesystem::temp_directory_path() / ("chorale_run_" + std::to_string(::getpid()));
  std::string printed_;
  int steps_ = 0;
};

}  // namespace chorale
