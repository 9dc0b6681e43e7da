// The program as a user meets it: exit statuses, what goes to which stream, and what an interrupt leaves.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "rl/fixture.h"
#include "simd/levels.h"

namespace chorale {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using namespace std::chrono_literals;

const std::string roles = std::string(CHORALE_SOURCE_DIR) + "/examples/roles/";

// A running `chorale`, its streams in files.
class Program {
 public:
  Program(const std::string& folder, const std::vector<std::string>& arguments,
          const std::string& variable = "")
      : out_(folder + "/stdout"), err_(folder + "/stderr") {
    for (const std::string& path : {out_, err_}) std::filesystem::remove(path);  // of the program before
    child_ = ::fork();
    if (child_ != 0) return;
    ::dup2(::open(out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
    ::dup2(::open(err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    if (!variable.empty()) ::putenv(const_cast<char*>(variable.c_str()));
    std::vector<char*> words{const_cast<char*>("chorale")};
    for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    ::execv(CHORALE_BINARY, words.data());
    ::_exit(127);
  }
  ~Program() {
    if (child_ > 0 && !ended_) ::kill(child_, SIGKILL), wait();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Until it has printed `text`; false if it ends before.
  bool prints(std::string_view text) {
    while (out().find(text) == std::string::npos) {
      ended_ = ended_ || ::waitpid(child_, &status_, WNOHANG) == child_;
      if (ended_) return out().find(text) != std::string::npos;
      std::this_thread::sleep_for(20ms);
    }
    return true;
  }
  void send(int signal) { ::kill(child_, signal); }
  // Exit status, or the negative number of the signal that ended it.
  int wait() {
    if (!ended_) ::waitpid(child_, &status_, 0);
    ended_ = true;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_);
  }
  std::string out() const { return content(out_); }
  std::string err() const { return content(err_); }

 private:
  static std::string content(const std::string& path) {
    const auto text = read_file(path);
    return text ? *text : "";
  }
  std::string out_, err_;
  pid_t child_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

class ProgramTest : public TinyRunTest {
 protected:
  struct Outcome {
    int status;
    std::string out, err;
  };
  Outcome run(const std::vector<std::string>& arguments, const std::string& variable = "") {
    Program program(root_, arguments, variable);
    const int status = program.wait();
    return {status, program.out(), program.err()};
  }
  std::vector<std::string> train(std::vector<std::string> more) const {
    more.insert(more.begin(), {"train", root_ + "/run.yaml", "--out", root_ + "/out"});
    return more;
  }
  // Steps of the newest checkpoint; -1 if there is none.
  int checkpoint() const {
    int steps = -1;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/out"))
      if (const std::string name = entry.path().filename(); name.starts_with("checkpoint-"))
        steps = std::max(steps, std::stoi(name.substr(11)));
    return steps;
  }
};

TEST_F(ProgramTest, DoesWhatItIsAskedWithStatusZero) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--version"},
                                                    {"--help"},
                                                    {"train", "--help"},
                                                    {"mask", "causal and q - k < 3", "--q", "8", "--k", "8"},
                                                    {"resolve", roles + "short.yaml"},
                                                    {"resolve", roles + "short.yaml", "--compared"},
                                                    {"resolve", roles + "short.yaml", "parity=off", "--json"},
                                                    train({"grpo.steps=1", "warmup.steps=1"})}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.status, 0) << arguments[0] << ": " << outcome.err;
    EXPECT_NE(outcome.out, "") << arguments[0];
    EXPECT_EQ(outcome.err, "") << arguments[0];
  }
}

TEST_F(ProgramTest, RefusesWithStatusTwoAndOneSentence) {
  struct Refused {
    std::vector<std::string> arguments;
    std::string sentence, variable = {};
  };
  ASSERT_TRUE(write_file(root_ + "/bad.yaml", "actor: {attn_implementation: eagre}\n").is_ok());
  ASSERT_TRUE(write_file(root_ + "/bytes.yaml", "actor: \xff\n").is_ok());
  for (const auto& [arguments, sentence, variable] :
       {Refused{{"mask", "caus"}, "column 1"},
        {{"mask", "q <"}, "column 4"},
        {{"resolve", root_ + "/missing.yaml"}, "missing.yaml"},
        {{"resolve", root_}, root_},
        {{"resolve", root_ + "/bad.yaml"}, "did you mean eager?"},
        {{"resolve", root_ + "/bytes.yaml"}, "bytes.yaml:1: is not UTF-8 text"},
        {{"train", root_ + "/missing.yaml"}, "missing.yaml"},
        {train({"rollout.pagse=3"}), "pagse: unknown key"},
        {train({"rollout.attn_implementation=flash_attention_3"}), "flash_attention_3"},
        {train({"--resume"}), "nothing to resume"},
        {{"verify", root_ + "/nowhere"}, "nowhere"},
        {{"generate", root_ + "/nowhere", "--prompt-tokens", "1"}, "nowhere"},
        {{"mask", "causal"}, "CHORALE_NUM_THREADS is 'many'", "CHORALE_NUM_THREADS=many"},
        {{"mask", "causal"}, "CHORALE_SIMD is 'mmx'", "CHORALE_SIMD=mmx"}}) {
    const Outcome outcome = run(arguments, variable);
    EXPECT_EQ(outcome.status, 2) << sentence;
    EXPECT_EQ(outcome.out, "") << sentence;
    EXPECT_THAT(outcome.err, StartsWith("chorale: "));
    EXPECT_THAT(outcome.err, HasSubstr(sentence));
  }
}

// Never something else in its place.
TEST_F(ProgramTest, ALevelOfSimdThatTheProcessorLacksIsAnError) {
  const std::string best = simd::processor_level();
  bool lacks = false;
  for (const std::string level : {"avx2", "avx512", "avx512_bf16", "amx"}) {
    const Outcome outcome = run({"mask", "causal"}, "CHORALE_SIMD=" + level);
    EXPECT_EQ(outcome.status, lacks ? 2 : 0) << level << ": " << outcome.err;
    if (lacks)
      EXPECT_EQ(outcome.err,
                "chorale: CHORALE_SIMD is '" + level + "': this processor has " + best + " at most\n");
    lacks = lacks || level == best;
  }
}

TEST_F(ProgramTest, UnreadableCommandLinesHaveStatusTwo) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{},
                                                    {"trian", "x.yaml"},
                                                    {"train"},
                                                    {"mask", "causal", "--q", "some"},
                                                    {"resolve", "x.yaml", "--jsno"}}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_EQ(outcome.out, "");
    EXPECT_NE(outcome.err, "");
  }
}

TEST_F(ProgramTest, RolesThatDisagreeHaveStatusTwoAndTheWholePicture) {
  const Outcome outcome = run({"resolve", roles + "parity_refused.yaml"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.out, HasSubstr("eager"));
  EXPECT_THAT(outcome.err, StartsWith("chorale: "));
}

TEST_F(ProgramTest, AnInterruptLeavesACheckpointFromWhichTheRunGoesOn) {
  for (const int signal : {SIGINT, SIGTERM}) {
    std::filesystem::remove_all(root_ + "/out");
    Program program(root_, train({"grpo.steps=100000"}));
    ASSERT_TRUE(program.prints("step    ")) << program.err();
    program.send(signal);
    EXPECT_EQ(program.wait(), 0) << program.err();
    EXPECT_THAT(program.out(), HasSubstr("stopped on request; checkpoint "));
    EXPECT_THAT(program.out(), HasSubstr("--resume"));
    const int steps = checkpoint();
    ASSERT_GE(steps, 3) << "the warm-up was over";
    const Outcome resumed = run(train({"--resume", "grpo.steps=" + std::to_string(steps - 3 + 1)}));
    EXPECT_EQ(resumed.status, 0) << resumed.err;
    EXPECT_THAT(resumed.out, HasSubstr("Bitwise identical : True"));
    EXPECT_EQ(checkpoint(), -1) << "a finished run has nothing to resume";
  }
}

// Making a larger model's weights takes longer than reading what was printed before.
TEST_F(ProgramTest, AnInterruptBeforeTheFirstStepLeavesACheckpointToo) {
  Program program(root_, train({"model.hidden_size=256", "model.intermediate_size=2048", "grpo.steps=1"}));
  ASSERT_TRUE(program.prints("parity: bitwise")) << program.err();
  program.send(SIGINT);
  EXPECT_EQ(program.wait(), 0) << program.err();
  EXPECT_THAT(program.out(), HasSubstr("stopped on request; checkpoint "));
  EXPECT_GE(checkpoint(), 1);
}

// A step so long that it cannot be waited for.
TEST_F(ProgramTest, ASecondInterruptEndsTheProgramAtOnce) {
  Program program(root_, train({"grpo.prompts=60", "grpo.group_size=20000", "grpo.minibatches=1"}));
  ASSERT_TRUE(program.prints("warm-up    3/3")) << program.err();
  program.send(SIGINT);
  std::this_thread::sleep_for(200ms);
  program.send(SIGINT);
  EXPECT_EQ(program.wait(), -SIGINT) << program.out();
}

}  // namespace
}  // namespace chorale
