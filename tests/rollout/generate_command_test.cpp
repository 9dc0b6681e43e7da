// `chorale generate`: what it prints, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/run_command.h"
#include "base/files.h"
#include "model/hugging_face.h"
#include "rl/task.h"
#include "rollout/fixture.h"

namespace chorale::app {
namespace {

using testing::HasSubstr;

// A folder with a random model of the sum-of-digits vocabulary, with a tokenizer or without.
class GenerateCommand : public testing::Test {
 protected:
  void SetUp() override {
    folder = testing::TempDir() + "chorale_generate_" +
             testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder);  // of a run that was cut short
    ASSERT_TRUE(make_folder(folder).is_ok());
    ModelConfig config = small_config();
    config.vocab_size = SumOfDigits::vocab_size;
    config.max_position_embeddings = 64;
    config.eos_token_id = SumOfDigits::end;
    const Status saved = save_model_folder(folder, config, random_parameters(config, 9));
    ASSERT_TRUE(saved.is_ok()) << saved.message();
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  void add_tokenizer() { ASSERT_TRUE(SumOfDigits::tokenizer().save(folder).is_ok()); }

  struct Printed : Outcome {
    nlohmann::json json() const { return nlohmann::json::parse(output); }
  };
  Printed run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"generate", folder});
    return {run_command(std::move(arguments))};
  }

  std::string folder;
};

TEST_F(GenerateCommand, SamplesFromText) {
  add_tokenizer();
  const auto outcome =
      run({"--prompt", "3+4=", "--max-new-tokens", "9", "--n", "3", "--seed", "5", "--json"});
  ASSERT_TRUE(outcome.status) << outcome.message();
  EXPECT_EQ(*outcome.status, exit_ok);
  const nlohmann::json document = outcome.json();
  EXPECT_EQ(document["prompt_tokens"], (std::vector{3, 10, 4, 11}));
  ASSERT_EQ(document["samples"].size(), 3u);
  for (const auto& sample : document["samples"]) {
    const auto tokens = sample["tokens"].get<std::vector<std::int32_t>>();
    EXPECT_EQ(tokens.size(), sample["log_probs"].size());
    EXPECT_EQ(sample["text"], SumOfDigits::tokenizer().decode(tokens));
    EXPECT_EQ(sample["finish_reason"], tokens.back() == SumOfDigits::end ? "stop" : "length");
  }
  EXPECT_NE(document["samples"][0]["tokens"], document["samples"][1]["tokens"])
      << "each sample has a seed of its own";

  // The second sample alone, from pages of another size, in a pool that is just large enough.
  const auto alone = run({"--prompt-tokens", "3,10,4,11", "--max-new-tokens", "9", "--seed", "6",
                          "--page-size", "4", "--pages", "3", "--json"});
  ASSERT_TRUE(alone.status) << alone.message();
  EXPECT_EQ(alone.json()["samples"][0]["tokens"], document["samples"][1]["tokens"]);
  EXPECT_EQ(alone.json()["samples"][0]["log_probs"], document["samples"][1]["log_probs"]);
}

TEST_F(GenerateCommand, PrintsText) {
  const auto outcome = run({"--prompt-tokens", "3,10,4,11", "--max-new-tokens", "2", "--temperature", "0"});
  ASSERT_TRUE(outcome.status) << outcome.message();
  EXPECT_THAT(outcome.output, HasSubstr("sample 0: "));
  EXPECT_THAT(outcome.output, HasSubstr("tokens/s"));
  EXPECT_THAT(outcome.output, Not(HasSubstr("text"))) << "there is no tokenizer to write it with";
}

TEST_F(GenerateCommand, RunsTheAttentionThatAConfigurationAsksFor) {
  const std::string config = folder + "/roles.yaml";
  ASSERT_TRUE(write_file(config, "rollout:\n  attn_implementation: flash_attention_3\n").is_ok());
  EXPECT_THAT(run({"--prompt-tokens", "3", "--config", config}).message(), HasSubstr("flash_attention_3"));
  ASSERT_TRUE(write_file(config, "rollout:\n  attn_implementation: eager\n").is_ok());
  EXPECT_TRUE(run({"--prompt-tokens", "3", "--config", config}).status);
}

TEST_F(GenerateCommand, TakesItsCacheFromTheConfiguration) {
  const std::string config = folder + "/rollout.yaml";
  const auto log_probs = [&](const std::string& text) {
    EXPECT_TRUE(write_file(config, text).is_ok());
    const auto outcome = run({"--prompt-tokens", "3,10,4,11", "--temperature", "0", "--max-new-tokens", "9",
                              "--config", config, "--json"});
    EXPECT_TRUE(outcome.status) << outcome.message();
    return outcome.status ? outcome.json()["samples"][0]["log_probs"].dump() : "";
  };
  const std::string plain = log_probs("rollout: {page_size: 4}\n");
  const std::string codes = log_probs("rollout: {page_size: 4, kv_cache_dtype: float8_e4m3}\n");
  EXPECT_NE(codes, plain);
  EXPECT_EQ(log_probs("actor_rollout_ref: {rollout: {kv_cache_dtype: float8_e4m3}}\n"), codes)
      << "the same in verl's shape, in pages of another size";
  EXPECT_NE(log_probs("rollout: {kv_cache_dtype: float8_e4m3, kv_cache_scale: 0.001}\n"), codes);

  ASSERT_TRUE(write_file(config, "rollout: {kv_cache_dtype: int4}\n").is_ok());
  EXPECT_THAT(run({"--prompt-tokens", "3", "--config", config}).message(),
              HasSubstr("rollout.kv_cache_dtype"));
  ASSERT_TRUE(write_file(config, "rollout: {pages: 1}\n").is_ok());
  EXPECT_THAT(run({"--prompt-tokens", "3", "--config", config}).message(),
              HasSubstr("the pool of 1 pages of 16 tokens holds 16"));
}

TEST_F(GenerateCommand, SaysWhatItRefuses) {
  EXPECT_THAT(run({"--prompt", "3+4="}).message(),
              HasSubstr("--prompt needs a chorale_tokenizer.json in " + folder));
  add_tokenizer();
  EXPECT_THAT(run({"--prompt", "3*4="}).message(), HasSubstr("--prompt: '3*4=', character 2"));
  EXPECT_THAT(run({"--prompt-tokens", "3,13"}).message(),
              HasSubstr("prompt[1] is 13: the vocabulary has tokens 0 to 12"));
  EXPECT_THAT(run({"--prompt-tokens", "3", "--max-new-tokens", "64"}).message(),
              HasSubstr("the model has 64 positions"));
  EXPECT_THAT(run({"--prompt-tokens", "3", "--top-p", "1.5"}).message(),
              HasSubstr("top_p 1.5: must be more than 0 and at most 1"));
  EXPECT_THAT(run({"--prompt-tokens", "3", "--n", "0"}).message(), HasSubstr("--n 0: must be at least 1"));
  EXPECT_THAT(run({"--prompt-tokens", "3", "--page-size", "0"}).message(),
              HasSubstr("page_size 0: must be a power of two from 1 to 256"));
  EXPECT_THAT(run({"--prompt-tokens", "3", "--pages", "1"}).message(),
              HasSubstr("the pool of 1 pages of 16 tokens holds 16"));
  EXPECT_THAT(run({"--prompt-tokens", "3", "--pages", "-1"}).message(), HasSubstr("pages -1"));
  EXPECT_THAT(run({}).message(), HasSubstr("Exactly 1 option from")) << "a prompt is needed";
  EXPECT_THAT(run({"--prompt", "3", "--prompt-tokens", "3"}).message(), HasSubstr("--prompt")) << "one only";
  EXPECT_THAT(run({"--prompt-tokens", "three"}).message(), HasSubstr("three"));
  std::filesystem::remove_all(folder);
  EXPECT_EQ(run({"--prompt-tokens", "3"}).status.status().code(), Code::not_found);
}

}  // namespace
}  // namespace chorale::app
