// chorale bench: what it runs, how much work it counts, what it refuses. On the fake GPU too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/run_command.h"
#include "implementations/cuda/on_gpu.h"

namespace chorale {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class BenchCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    ::unsetenv("CHORALE_ATTN_IMPLEMENTATION");
    ::unsetenv("VERL_ATTN_IMPLEMENTATION");
  }

  Result<int> run(std::vector<std::string> more, const std::string& batch = "2",
                  const std::string& length = "40") {
    std::vector<std::string> arguments{"bench",
                                       std::string(CHORALE_SOURCE_DIR) + "/examples/roles/short.yaml",
                                       "model.num_attention_heads=4",
                                       "model.num_key_value_heads=2",
                                       "model.head_dim=64",
                                       "--batch",
                                       batch,
                                       "--length",
                                       length,
                                       "--seconds",
                                       "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    app::Outcome outcome = app::run_command(std::move(arguments));
    output_ = outcome.output;
    return outcome.status;
  }
  nlohmann::json run_json(std::vector<std::string> more) {
    more.emplace_back("--json");
    const Result<int> status = run(std::move(more));
    EXPECT_TRUE(status.has_value()) << status.status().message();
    return status ? nlohmann::json::parse(output_) : nlohmann::json();
  }
  std::string refusal(std::vector<std::string> more, const std::string& batch = "2",
                      const std::string& length = "40") {
    const Result<int> status = run(std::move(more), batch, length);
    return status ? "not refused" : status.status().message();
  }
  // What the rate was computed from.
  static double work(const nlohmann::json& phase) {
    return phase.at("rate").get<double>() * phase.at("seconds").get<double>();
  }

  std::string output_;
};

// Of 2 sequences of 40, 4 query heads and 2 KV heads of 64.
constexpr double causal_operations = 4.0 * 64 * (40 * 41 / 2) * 4 * 2, key_bytes = 2.0 * 64 * 2 * 80 * 2;

#ifndef CHORALE_FAKE_GPU

TEST_F(BenchCommand, CountsTheWorkOfEveryPhase) {
  const auto rollout = run_json({}).at("phases");
  ASSERT_EQ(rollout.size(), 2u);
  EXPECT_EQ(rollout[0].at("phase"), "prefill");
  EXPECT_NEAR(work(rollout[0]), causal_operations, 1);
  EXPECT_EQ(rollout[1].at("phase"), "decode");
  EXPECT_NEAR(work(rollout[1]), key_bytes, 1);
  EXPECT_EQ(rollout[1].at("implementation"), "flash_attention_2");
  EXPECT_GT(rollout[1].at("limit").get<double>(), 0);

  const auto actor = run_json({"--role", "actor", "model.mask=causal and window(1)"}).at("phases");
  ASSERT_EQ(actor.size(), 1u) << "no backward";
  EXPECT_EQ(actor[0].at("phase"), "forward");
  EXPECT_NEAR(work(actor[0]), 4.0 * 64 * 40 * 4 * 2, 1) << "visible pairs alone";
}

TEST_F(BenchCommand, SaysWhatRan) {
  EXPECT_EQ(run({"rollout.attn_implementation=eager", "rollout.page_size=4"}).value(), app::exit_ok);
  EXPECT_THAT(output_,
              AllOf(StartsWith("cpu ("), HasSubstr("rollout decode: eager eager/f64"),
                    HasSubstr("pages of 4 in random order"), HasSubstr("of reading memory in this run")));
  EXPECT_EQ(run({"rollout.kv_cache_dtype=float8_e4m3"}).value(), app::exit_ok) << "8-bit keys";
}

TEST_F(BenchCommand, RefusesInWords) {
  EXPECT_THAT(refusal({"--role", "driver"}), StartsWith("role driver: must be actor, rollout"));
  EXPECT_THAT(refusal({"--device", "gpu"}), HasSubstr("gpu"));
  EXPECT_THAT(refusal({"rollout.page_size=3"}), HasSubstr("page_size: is 3"));
  EXPECT_THAT(refusal({"rollout.pagesize=4"}), HasSubstr("rollout.pagesize"));
  EXPECT_THAT(refusal({}, "60000", "1000000"), HasSubstr("must be at most 16777216 tokens"));
  EXPECT_THAT(refusal({}, "2", "100000"), HasSubstr("length 100000 of prefill: must be at most 16384"));
}

TEST_F(BenchCommand, RefusesAGpuThatIsNotThere) {
  EXPECT_THAT(refusal({"--device", "cuda:99"}), StartsWith("--device cuda: "));
}

#else

TEST_F(BenchCommand, RunsOnAGpu) {
  testing::on_plan({.query_heads = 4, .kv_heads = 2, .head_dim = 64, .mask = mask::causal()});
  const auto report = run_json({"--device", "cuda"});
  EXPECT_THAT(report.at("device").get<std::string>(), StartsWith("cuda:0 ("));
  const auto phases = report.at("phases");
  ASSERT_EQ(phases.size(), 2u);
  for (const auto& phase : phases) EXPECT_EQ(phase.at("implementation"), "flash_attention_3");
  EXPECT_NEAR(work(phases[0]), causal_operations, 1);
  EXPECT_NEAR(work(phases[1]), key_bytes, 1);
  EXPECT_GT(phases[1].at("limit").get<double>(), 0);
}

#endif

}  // namespace
}  // namespace chorale
