// verify: agreement is found where it holds, and the first operation that differs where it does not.
#include "rl/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "apps/run_command.h"
#include "model/fixture.h"

namespace chorale {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* same_everywhere =
    "actor: {attn_implementation: flash_attention_2}\nrollout: {attn_implementation: flash_attention_2}\n";
constexpr const char* eager_rollout =
    "actor: {attn_implementation: flash_attention_2}\nrollout: {attn_implementation: eager}\n";

// Four sequences of twelve new tokens.
VerifyReport run(const std::string& yaml, VerifyConfig config = {.requests = 4, .max_new_tokens = 12},
                 DType type = DType::float32) {
  const ModelConfig shape = test::small_config(type);
  const ResolvedRoles roles =
      Roles::parse(yaml).value().resolve_all(shape.problem(), Device::cpu(), shape.num_hidden_layers).value();
  const Model model = Model::create(shape, test::lively_parameters(shape, 4)).value();
  return verify(model, roles, config).value();
}

TEST(Verify, FindsAgreement) {
  for (const DType type : {DType::float32, DType::bfloat16}) {
    const VerifyReport report = run(same_everywhere, {.requests = 4, .max_new_tokens = 12}, type);
    EXPECT_TRUE(report.identical()) << report.text();
    EXPECT_EQ(report.sequences, 4);
    EXPECT_EQ(report.log_probs.tokens, 4 * 12);
    // Every operation at every position that the rollout computes (all but each last token), and the logits
    // drawn from.
    EXPECT_EQ(report.outputs, report.positions * (1 + 2 * 17 + 1) + report.log_probs.tokens);
    EXPECT_THAT(report.text(), AllOf(HasSubstr("Bitwise identical : True"),
                                     HasSubstr("Every operation has the same bits.")));
  }
}

TEST(Verify, FindsAgreementUnderPreemptionSmallPagesAndChunks) {
  VerifyConfig config{.requests = 8, .max_new_tokens = 20};
  config.generator.page_size = 4, config.generator.pages = 24;
  config.generator.scheduler.tokens_per_step = 16, config.generator.scheduler.max_running = 5;
  const VerifyReport report = run(same_everywhere, config);
  EXPECT_TRUE(report.identical()) << report.text();
  EXPECT_EQ(report.log_probs.tokens, 8 * 20);
}

TEST(Verify, NamesTheFirstOperationThatDiffers) {
  const VerifyReport report = run(eager_rollout);
  EXPECT_FALSE(report.identical());
  EXPECT_GT(report.log_probs.different, 0);
  EXPECT_LT(report.log_probs.max_delta, 1e-3) << "other roundings, not other numbers";
  ASSERT_TRUE(report.first.has_value());
  EXPECT_EQ(report.first->layer, 0);
  EXPECT_EQ(report.first->operation, "attention");
  EXPECT_NE(report.first->rollout, report.first->trainer);
  EXPECT_NEAR(report.first->rollout, report.first->trainer, 1e-4 * (1 + std::abs(report.first->rollout)));
  EXPECT_TRUE(std::ranges::is_sorted(report.first->places, {}, [](const TokenPlace& place) {
    return std::pair(place.sequence, place.position);
  }));
  for (const TokenPlace& place : report.first->places) {
    EXPECT_GT(place.position, 0) << "the first token attends to itself alone: its value, whoever computes it";
    EXPECT_LT(place.sequence, 4);
  }
  EXPECT_THAT(report.text(), AllOf(HasSubstr("Bitwise identical : False"),
                                   HasSubstr("First difference: layer 0, operation 'attention'"),
                                   HasSubstr("sequence 0: "), HasSubstr(", trainer ")));
}

TEST(Verify, NamesTheLayer) {
  const VerifyReport report =
      run("actor: {attn_implementation: flash_attention_2}\nrollout:\n  attn_implementation: "
          "flash_attention_2\n  overrides:\n"
          "    - {layers: 1, attn_implementation: eager}\n");
  ASSERT_TRUE(report.first.has_value());
  EXPECT_EQ(report.first->layer, 1);
  EXPECT_EQ(report.first->operation, "attention");
}

TEST(Verify, NamesThePhase) {
  const VerifyReport report =
      run("actor: {attn_implementation: flash_attention_2}\nrollout:\n  attn_implementation: "
          "flash_attention_2\n  overrides:\n"
          "    - {layers: 0-1, phase: decode, attn_implementation: eager}\n",
          {.requests = 1, .max_new_tokens = 12});
  ASSERT_TRUE(report.first.has_value());
  EXPECT_GE(report.first->places.front().position, report.positions - 11)
      << "prompts agree; only generated tokens differ";
}

TEST(Verify, TheSameSeedGivesTheSameReport) {
  const std::string report = run(eager_rollout).to_json();
  EXPECT_EQ(run(eager_rollout).to_json(), report);
  EXPECT_NE(run(eager_rollout, {.requests = 4, .max_new_tokens = 12, .seed = 2}).to_json(), report);
  const auto json = nlohmann::json::parse(report);
  EXPECT_EQ(json.at("identical"), false);
  EXPECT_EQ(json.at("first_difference").at("operation"), "attention");
  EXPECT_EQ(json.at("log_probs").at("tokens_checked"), 48);
}

TEST(Verify, RefusesWhatLeavesNoPrompt) {
  const ModelConfig shape = test::small_config();
  const ResolvedRoles roles =
      Roles::parse(same_everywhere).value().resolve_all(shape.problem(), Device::cpu(), 2).value();
  const Model model = Model::create(shape, test::lively_parameters(shape, 4)).value();
  VerifyConfig config;
  config.max_new_tokens = 512;
  EXPECT_THAT(verify(model, roles, config).status().message(),
              HasSubstr("max_new_tokens 512: must be at most 511"));
}

// The compiled kernels with one row of each call a tenth too large.
class OffInOneRow final : public Implementation {
 public:
  std::string_view name() const override { return inner().name(); }
  Status supports(const Problem& problem, const Device& device, Phase phase) const override {
    return inner().supports(problem, device, phase);
  }
  Fingerprint fingerprint(const Problem& problem, const Device& device) const override {
    return inner().fingerprint(problem, device);
  }
  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device& device) const override {
    return inner().plan(problem, batch, device);
  }
  Status forward(const Plan& plan, const ForwardTensors& tensors) const override {
    CHORALE_RETURN_IF_ERROR(inner().forward(plan, tensors));
    auto* row = static_cast<float*>(tensors.out.data) + 3 * tensors.out.stride[0] + tensors.out.stride[1];
    for (int i = 0; i < plan.problem().value_dim(); ++i) row[i] *= 1.1f;
    return Status::ok();
  }
  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    return inner().backward(plan, tensors);
  }

 private:
  static const Implementation& inner() {
    return *find_implementation_name("flash_attention_2")->servants.front();
  }
};

TEST(Verify, ComparesWithFloat64) {
  const VerifyConfig config{.requests = 4, .max_new_tokens = 12, .float64 = true};
  for (const DType type : {DType::float32, DType::bfloat16}) {
    const VerifyReport report = run(same_everywhere, config, type);
    ASSERT_TRUE(report.float64.has_value());
    EXPECT_TRUE(report.passes()) << report.text();
    EXPECT_GT(report.float64->worst, 0);
    EXPECT_EQ(report.float64->rows, (report.positions + 4) * 2 * 4) << "of all tokens, layers and heads";
  }
}

TEST(Verify, NamesTheRowThatIsFarFromFloat64) {
  const ModelConfig shape = test::small_config();
  ResolvedRoles roles =
      Roles::parse(same_everywhere).value().resolve_compared(shape.problem(), Device::cpu(), 2).value();
  const OffInOneRow off;
  for (Resolution& resolution : roles.roles.at(Role::actor)) resolution.chosen = &off;
  const Model model = Model::create(shape, test::lively_parameters(shape, 4)).value();
  const VerifyReport report =
      verify(model, roles, {.requests = 4, .max_new_tokens = 12, .float64 = true}).value();
  ASSERT_TRUE(report.float64.has_value());
  EXPECT_EQ(report.float64->outside, 2) << "one in each layer";
  EXPECT_FALSE(report.passes());
  EXPECT_THAT(report.text(), AllOf(HasSubstr("2 outside their bounds"),
                                   HasSubstr("layer 0, sequence 0, position 3, head 1: off by")));
  EXPECT_EQ(nlohmann::json::parse(report.to_json()).at("float64").at("outside"), 2);
}

// ---- The command ----

class VerifyCommand : public ::testing::Test {
 protected:
  void SetUp() override {
    ::unsetenv("CHORALE_ATTN_IMPLEMENTATION");
    ::unsetenv("VERL_ATTN_IMPLEMENTATION");
    folder_ = std::filesystem::temp_directory_path() / ("chorale_verify_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    file_ = (folder_ / "verify.yaml").string();
    ASSERT_TRUE(write_file(file_, "parity: off\nmodel: {path: " + test::fixture_path("untied") + "}\n" +
                                      same_everywhere)
                    .is_ok());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Result<int> run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"verify", "--requests", "3"});
    app::Outcome outcome = app::run_command(std::move(arguments));
    output_ = outcome.output;
    return outcome.status;
  }
  std::string refusal(std::vector<std::string> arguments) {
    const Result<int> status = run(std::move(arguments));
    return status ? "not refused" : status.status().message();
  }

  std::filesystem::path folder_;
  std::string file_, output_;
};

TEST_F(VerifyCommand, ExitStatusSaysWhetherBitsAgree) {
  EXPECT_EQ(run({file_}).value(), app::exit_ok);
  EXPECT_THAT(output_, HasSubstr("Tokens different  : 0"));
  EXPECT_EQ(run({file_, "rollout.attn_implementation=eager"}).value(), app::exit_differs);
  EXPECT_THAT(output_, HasSubstr("First difference: layer 0, operation 'attention'"));
  EXPECT_EQ(
      run({file_, "rollout.attn_implementation=eager", "--json", "--max-new-tokens", "4", "--seed", "9"})
          .value(),
      app::exit_differs);
  EXPECT_EQ(nlohmann::json::parse(output_).at("log_probs").at("tokens_checked"), 12);
}

TEST_F(VerifyCommand, TakesTheModelAndTheRolloutFromElsewhere) {
  EXPECT_EQ(run({file_, "--model", test::fixture_path("tied"), "model.compute_dtype=bfloat16",
                 "rollout.page_size=2", "rollout.temperature=0.5"})
                .value(),
            app::exit_ok);
  EXPECT_EQ(run({file_, "model.mask=causal and q - k < 5"}).value(), app::exit_ok)
      << "the attention's mask may be the file's";
  EXPECT_EQ(run({file_, "rollout.kv_cache_dtype=float8_e4m3"}).value(), app::exit_ok)
      << "8-bit keys, replayed by the trainer";
  const std::string quoted = (folder_ / "it's: a folder").string();
  std::filesystem::copy(test::fixture_path("tied"), quoted);
  EXPECT_EQ(run({file_, "--model", quoted}).value(), app::exit_ok);
}

// Where there is a GPU, the model's head_dim is not for it.
TEST_F(VerifyCommand, RefusesAGpuThatCannotServe) {
  EXPECT_THAT(refusal({file_, "--device", "cuda"}),
              AnyOf(HasSubstr("--device cuda: "), HasSubstr("head_dim 12")));
  EXPECT_THAT(refusal({file_, "--device", "gpu"}), HasSubstr("gpu"));
}

TEST_F(VerifyCommand, ReadsTheConfigurationOfARun) {
  const std::string grpo = std::string(CHORALE_SOURCE_DIR) + "/examples/sum_digits/grpo.yaml";
  EXPECT_THAT(refusal({grpo}), HasSubstr("has no model.path: say which model with --model FOLDER"));
  EXPECT_THAT(refusal({grpo, "--model", test::fixture_path("tied")}),
              AllOf(HasSubstr("model.head_dim"), HasSubstr("has 12")));
  EXPECT_THAT(
      refusal({grpo, "--model", test::fixture_path("tied"), "model.head_dim=12", "rollout.pagesize=4"}),
      HasSubstr("rollout.pagesize"));
  EXPECT_EQ(run({grpo, "--model", test::fixture_path("tied"), "model.head_dim=12"}).value(), app::exit_ok);
}

TEST_F(VerifyCommand, ReadsVerlsShape) {
  ASSERT_TRUE(write_file(file_,
                         "actor_rollout_ref:\n"
                         "  model: {path: " +
                             test::fixture_path("untied") +
                             "}\n"
                             "  actor: {attn_implementation: flash_attention_2}\n"
                             "  rollout: {attn_implementation: flash_attention_2, page_size: 2, "
                             "kv_cache_dtype: float8_e4m3, kv_cache_scale: 0.01}\n")
                  .is_ok());
  EXPECT_EQ(run({file_}).value(), app::exit_ok) << output_;
  EXPECT_EQ(run({file_, "--model", test::fixture_path("tied")}).value(), app::exit_ok);
  EXPECT_THAT(refusal({file_, "actor_rollout_ref.rollout.page_size=3"}), HasSubstr("power of two"));
  EXPECT_THAT(refusal({file_, "rollout.page_size=3"}), HasSubstr("power of two"))
      << "the command line wins in either shape";
  EXPECT_THAT(refusal({file_, "actor_rollout_ref.rollout.pages=1"}),
              HasSubstr("the pool of 1 pages of 2 tokens"));
  EXPECT_THAT(refusal({file_, "actor_rollout_ref.rollout.paegs=1"}), HasSubstr("paegs"));
}

TEST_F(VerifyCommand, RefusesInWords) {
  EXPECT_THAT(refusal({file_, "rollout.attn_implementation=eager", "parity=bitwise"}),
              HasSubstr("parity is bitwise"));
  EXPECT_THAT(refusal({file_, "--model", "/no/such/folder"}), HasSubstr("/no/such/folder/config.json"));
  EXPECT_THAT(refusal({file_, "--max-new-tokens", "128"}),
              HasSubstr("max_new_tokens 128: must be at most 127"));
  EXPECT_THAT(refusal({file_, "rollout.page_size=3"}),
              AllOf(HasSubstr("rollout.page_size"), HasSubstr("power of two")));
  EXPECT_THAT(refusal({file_, "rollout.pages=1"}), HasSubstr("the pool of 1 pages of 16 tokens"));
  EXPECT_THAT(refusal({file_, "rollout.paegs=8"}), HasSubstr("rollout.paegs"));
  EXPECT_THAT(refusal({"/no/such/file.yaml"}), HasSubstr("/no/such/file.yaml"));
}

}  // namespace
}  // namespace chorale
