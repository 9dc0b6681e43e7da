// Whole runs of a tiny model: the comparison is honest, refusals come before training, and interruption
// leaves no trace in the result.
#include "rl/run.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <fstream>

#include "model/hugging_face.h"
#include "rl/fixture.h"

namespace chorale {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

// The history without what a clock says.
std::string without_seconds(History history) {
  history.warmup_seconds = 0;
  for (StepRecord& step : history.steps)
    step.generate_seconds = step.score_seconds = step.reference_seconds = step.learn_seconds = 0;
  return to_json(history);
}

class RunTest : public TinyRunTest {
 protected:
  void interrupt(RunOptions options) {
    EXPECT_EQ(chorale::Run::prepare(options).value()->train().value(), RunEnd::interrupted);
  }
  RunOptions resumed(RunOptions options) {
    options.resume = true;
    return options;
  }
};

TEST_F(RunTest, RolloutAndTrainerAgreeToTheBit) {
  const auto run = finished(options("out"));
  const LogProbComparison& comparison = run->history().comparison;
  std::int64_t trained = 0;
  for (const StepRecord& step : run->history().steps) trained += step.tokens;
  EXPECT_EQ(comparison.different, 0);
  EXPECT_GT(trained, 64);  // 4 steps of 16 answers
  EXPECT_GT(comparison.tokens, trained) << "evaluations count, too";
  EXPECT_THAT(printed_, AllOf(HasSubstr("flash_attention_2"), HasSubstr("warm-up    3/3"),
                              HasSubstr("step    4/4"), HasSubstr("Bitwise identical : True")));
  EXPECT_EQ(run->history().evaluations.size(), 3u);  // before, in the middle, after

  const ModelFolder saved = load_model_folder(root_ + "/out/model").value();
  EXPECT_TRUE(same_bits(saved.parameters, run->trainer().parameters()));
  EXPECT_EQ(Tokenizer::load(root_ + "/out/model").value().size(), saved.config.vocab_size);
  EXPECT_FALSE(run->folder().checkpoint()) << "a finished run has nothing to resume";
}

TEST_F(RunTest, ReportNeedsNothingElse) {
  finished(options("out"));
  const std::string report = read_file(root_ + "/out/report.html").value();
  for (const char* outside : {"src=", "href=", "url(", "@import", "<script", "<link"})
    EXPECT_THAT(report, Not(HasSubstr(outside)));
  EXPECT_THAT(report, AllOf(HasSubstr("Bitwise identical : True"), HasSubstr("reward_model"),
                            HasSubstr("chorale train &lt;run.yaml&gt;"), HasSubstr("flash_attention_3"),
                            HasSubstr("<svg"), HasSubstr("optimizer.learning_rate")));
}

TEST_F(RunTest, AnotherOrderOfArithmeticShows) {
  const auto run = finished(options("out", {"rollout.attn_implementation=eager", "parity=off"}));
  const LogProbComparison& comparison = run->history().comparison;
  EXPECT_GT(comparison.different, 0);
  EXPECT_GT(comparison.max_delta, 0);
  EXPECT_LT(comparison.max_delta, 1e-3) << "both compute the same function";
  EXPECT_THAT(printed_, HasSubstr("Bitwise identical : False"));
}

TEST_F(RunTest, BitwiseParityRefusesToStart) {
  const auto run = chorale::Run::prepare(options("out", {"rollout.attn_implementation=eager"}));
  ASSERT_FALSE(run);
  EXPECT_EQ(run.status().code(), Code::parity_violation);
  EXPECT_FALSE(fs::exists(root_ + "/out")) << "nothing is written";
}

TEST_F(RunTest, HowTheRolloutIsScheduledChangesNoBit) {
  const auto plain = finished(options("plain"));
  // So few pages that sequences are preempted, and steps that cut prompts into pieces.
  const auto squeezed =
      finished(options("squeezed", {"rollout.page_size=1", "rollout.pages=9", "rollout.max_running=3",
                                    "rollout.tokens_per_step=3", "threads=1"}));
  EXPECT_TRUE(same_bits(plain->trainer().parameters(), squeezed->trainer().parameters()));
  EXPECT_EQ(without_seconds(plain->history()), without_seconds(squeezed->history()));
  const auto other = finished(options("other", {"seed=4"}));
  EXPECT_FALSE(same_bits(plain->trainer().parameters(), other->trainer().parameters()));
}

TEST_F(RunTest, Bfloat16AgreesToo) {
  const auto run = finished(options("out", {"model.compute_dtype=bfloat16"}));
  EXPECT_EQ(run->history().comparison.different, 0);
}

TEST_F(RunTest, InterruptedAndResumedEqualsUninterrupted) {
  const auto whole = finished(options("whole"));
  // In the middle of warm-up, at its end, and in the middle of GRPO, where an evaluation is due.
  for (const int stop_after : {2, 3, 5}) {
    const std::string folder = "stopped_" + std::to_string(stop_after);
    interrupt(options(folder, {}, stop_after));
    EXPECT_TRUE(fs::exists(root_ + "/" + folder + "/checkpoint-00000" + std::to_string(stop_after)));
    const auto run = finished(resumed(options(folder)));
    EXPECT_TRUE(same_bits(whole->trainer().parameters(), run->trainer().parameters())) << stop_after;
    EXPECT_TRUE(
        same_bits(whole->trainer().optimizer().second_moment(), run->trainer().optimizer().second_moment()));
    EXPECT_EQ(without_seconds(whole->history()), without_seconds(run->history())) << stop_after;
  }
}

TEST_F(RunTest, PeriodicCheckpointsLeaveOnlyTheNewest) {
  interrupt(options("out", {"trainer.save_every=1"}, 6));
  EXPECT_EQ(std::distance(fs::directory_iterator(root_ + "/out"), {}), 2);  // the checkpoint and the lock
  EXPECT_TRUE(fs::exists(root_ + "/out/checkpoint-000006"));
}

TEST_F(RunTest, CheckpointsOfAnotherConfigurationAreRefused) {
  interrupt(options("out", {}, 5));
  EXPECT_THAT(refusal(resumed(options("out", {"optimizer.learning_rate=0.004"}))),
              AllOf(HasSubstr("optimizer.learning_rate is 0.003 there and 0.004 here"),
                    HasSubstr("checkpoint-000005")));
  EXPECT_THAT(refusal(resumed(options("out", {"model.mask='causal and q - k < 3'"}))),
              HasSubstr("model.mask"));
  EXPECT_THAT(refusal(resumed(options("out", {"rollout.attn_implementation=eager", "parity=off"}))),
              HasSubstr("rollout (layers 0-1, "));
  EXPECT_EQ(finished(resumed(options("out", {"rollout.page_size=2", "grpo.steps=5", "threads=1"})))
                ->history()
                .steps.size(),
            5u);
}

TEST_F(RunTest, DamagedCheckpointsAreRefused) {
  interrupt(options("out", {}, 5));
  const std::string checkpoint = root_ + "/out/checkpoint-000005";
  for (const char* file : {"identity.json", "history.json", "trainer.json", "model/model.safetensors",
                           "reference/config.json"}) {
    const std::string content = read_file(checkpoint + "/" + file).value();
    for (const std::string& damaged :
         {std::string(), content.substr(0, content.size() / 2), std::string("{}")}) {
      ASSERT_TRUE(write_file(checkpoint + "/" + file, damaged).is_ok());
      EXPECT_NE(refusal(resumed(options("out"))), "") << file << ": " << damaged.size() << " bytes";
    }
    ASSERT_TRUE(write_file(checkpoint + "/" + file, content).is_ok());
  }
  EXPECT_EQ(refusal(resumed(options("out"))), "");
}

TEST_F(RunTest, NothingIsLostByAccident) {
  EXPECT_THAT(refusal(resumed(options("out"))), HasSubstr("nothing to resume"));
  interrupt(options("out", {}, 2));
  EXPECT_THAT(refusal(options("out")), AllOf(HasSubstr("checkpoint-000002"), HasSubstr("--resume")));
  const auto holder = chorale::Run::prepare(resumed(options("out"))).value();
  EXPECT_THAT(refusal(resumed(options("out"))), HasSubstr("in use by another run"));
}

TEST_F(RunTest, AKilledRunsHalfCheckpointIsRemoved) {
  fs::create_directories(root_ + "/out/checkpoint-000001.staging.99999/model");
  finished(options("out"));
  EXPECT_FALSE(fs::exists(root_ + "/out/checkpoint-000001.staging.99999"));
}

TEST_F(RunTest, AFolderThatCannotBeWrittenIsRefusedBeforeTraining) {
  ASSERT_TRUE(write_file(root_ + "/file", "not a folder").is_ok());
  EXPECT_THAT(refusal(options("file")), HasSubstr(root_ + "/file"));
  EXPECT_THAT(refusal(options("file/out")), HasSubstr(root_ + "/file/out"));
  EXPECT_EQ(read_file(root_ + "/file").value(), "not a folder");
}

TEST_F(RunTest, ConfigurationErrorsNameFileLineAndKey) {
  const auto refused = [&](std::string_view from, std::string_view to) {
    std::string text(tiny_run);
    text.replace(text.find(from), from.size(), to);
    EXPECT_TRUE(write_file(root_ + "/run.yaml", text).is_ok());
    return refusal(options("out"));
  };
  EXPECT_THAT(refused("pages: 64", "pagse: 64"),
              AllOf(HasSubstr("run.yaml:15: rollout.pagse: unknown key"), HasSubstr("pages")));
  EXPECT_THAT(refused("warmup:", "warm_up:"), HasSubstr("run.yaml:23: warm_up: unknown key"));
  EXPECT_THAT(refused("pages: 64", "pages: many"),
              HasSubstr("run.yaml:15: rollout.pages: must be a whole number"));
  EXPECT_THAT(refused("pages: 64", "pages: 0"),
              HasSubstr("run.yaml:15: rollout.pages: is 0: must be from 1"));
  EXPECT_THAT(refused("pages: 64", "pages: 1"),
              HasSubstr("run.yaml:15: rollout.pages: is 1: pages of 4 tokens must hold"));
  EXPECT_THAT(refused("page_size: 4", "page_size: 3"),
              HasSubstr("run.yaml:16: rollout.page_size: is 3: must be a power of two"));
  EXPECT_THAT(refused("max_running: 16", "max_running: 33"),
              HasSubstr("run.yaml:17: rollout.max_running: is 33"));
  EXPECT_THAT(refused("min_digits: 1", "min_digits: 3"), HasSubstr("run.yaml:22: task: max_digits 2"));
  EXPECT_THAT(refused("minibatches: 2", "minibatches: 5"), HasSubstr("run.yaml:24: grpo.minibatches: is 5"));
  EXPECT_THAT(refused("learning_rate: 0.003", "learning_rate: 0"),
              HasSubstr("run.yaml:25: optimizer.learning_rate: is 0"));
  EXPECT_THAT(refused("num_key_value_heads: 1", "num_key_value_heads: 3"), HasSubstr("run.yaml:4: model"));
  EXPECT_THAT(refused("  hidden_size: 16\n", ""), HasSubstr("model.hidden_size"));
  EXPECT_THAT(refused("head_dim: 8", "head_dim: 8\n  sinks: true"), HasSubstr("model.sinks: is true"));
  EXPECT_THAT(refused("name: tiny", "name: a/b"), HasSubstr("run.yaml:1: name: 'a/b'"));
  EXPECT_FALSE(fs::exists(root_ + "/out"));
}

// Every key is in docs/training.md, with its default.
TEST(RunConfigDocument, HasARowForEveryKey) {
  std::ifstream document(std::string(CHORALE_SOURCE_DIR) + "/docs/training.md");
  std::map<std::string, std::string> rows;  // key in backquotes, with its row
  for (std::string line; std::getline(document, line);)
    if (line.starts_with("| `")) rows[line.substr(2, line.find('`', 3) - 1)] = line;
  RunConfig defaults;
  for (const Setting& setting : settings(defaults)) {
    const auto row = rows.find(fmt::format("`{}`", setting.key));
    ASSERT_NE(row, rows.end()) << setting.key;
    const bool required = setting.key.starts_with("model.") && setting.text() == "0";
    EXPECT_THAT(row->second, HasSubstr(required ? "| required |" : fmt::format("| `{}` |", setting.text())));
    EXPECT_EQ(row->second.find("*free*") == std::string::npos, setting.decides_bits) << setting.key;
  }
}

}  // namespace
}  // namespace chorale
