// Run: a training run from configuration to report.
//
//     warm-up     supervised steps from random weights
//     reference   a frozen copy of what they made
//     GRPO        generate - reward - compare - learn, step by step
//     evaluation  on prompts that nobody trained on
//
// Every draw is a function of the seed and the step, and every sum has one order, so a run that was
// interrupted and resumed ends with the bits of one that was not.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/roles.h"
#include "rl/history.h"
#include "rl/report.h"
#include "rl/run_config.h"
#include "rl/run_folder.h"
#include "rl/task.h"
#include "rollout/generator.h"
#include "trainer/trainer.h"

namespace chorale {

struct RunOptions {
  std::string config_file;
  std::vector<std::string> overrides;  // "key=value"
  std::string output;                  // folder; "": runs/<name>
  bool resume = false;
  std::string command;  // what the user typed, for the report
  std::function<void(std::string_view line)> print = [](std::string_view) {};
  std::function<bool()> stop_requested = [] { return false; };  // looked at after each step
};

enum class RunEnd { done, interrupted };

// Not thread-safe; stays where it was made.
class Run {
 public:
  // Reads the configuration, resolves every role, opens the output folder and, to resume, the checkpoint.
  // Whatever can be refused is refused here, before anything is trained. Prints the resolution, if that is
  // why, or once nothing else is.
  static Result<std::unique_ptr<Run>> prepare(const RunOptions& options);

  // Trains to the end, or to the step after which a stop was requested: then a checkpoint is left.
  Result<RunEnd> train();

  const History& history() const { return history_; }
  const ResolvedRoles& resolved() const { return resolved_; }
  const Trainer& trainer() const { return *trainer_; }
  const RunFolder& folder() const { return folder_; }
  GeneratorStats rollout_stats() const { return generator_->stats(); }  // warm-up's evaluations included

 private:
  // The answers of one rollout, in the order of their prompts, a group after the other.
  struct Answers {
    std::vector<TrainingSequence> sequences;
    std::vector<float> log_probs;  // of answer tokens, as the rollout recorded them
    std::vector<double> rewards;
    double mean_reward() const;
  };

  Run(RunOptions options, RunConfig config, Problem problem, ResolvedRoles resolved, SumOfDigits task,
      RunFolder folder)
      : options_(std::move(options)),
        config_(std::move(config)),
        problem_(std::move(problem)),
        resolved_(std::move(resolved)),
        task_(std::move(task)),
        folder_(std::move(folder)) {}

  Status build();
  ScoringConfig scoring(float temperature) const;
  AdamWConfig warmup_optimizer() const;

  Status warmup_step();
  Status start_grpo();
  Status freeze_reference(ParameterSet parameters);
  Status grpo_step();
  Status learn(const Answers& answers, const std::vector<float>& reference, StepRecord& record);
  Result<Answers> generate(std::span<const SumOfDigits::Tokens> prompts, int group_size,
                           const SamplingConfig& sampling, std::uint64_t step);
  // Adds to the comparison of the run; returns that of these answers alone.
  Result<LogProbComparison> compare(const Answers& answers, float temperature);
  Status evaluate();
  Status finish();

  // run_checkpoint.cpp
  std::int64_t steps_done() const;
  std::map<std::string, std::string> bit_identity() const;
  Status save_checkpoint();
  Status restore_checkpoint(const std::string& path);

  RunOptions options_;
  RunConfig config_;
  Problem problem_;
  ResolvedRoles resolved_;
  SumOfDigits task_;
  RunFolder folder_;
  History history_;

  std::optional<Trainer> trainer_;      // the actor
  std::optional<Generator> generator_;  // the rollout, on the actor's model
  std::optional<PackedAttention> reference_attention_;
  ParameterSet reference_parameters_;  // empty during warm-up
  std::optional<Model> reference_;
  std::vector<Report::Sample> samples_;  // of the last evaluation
  std::int64_t saved_steps_ = -1;        // steps_done() of the newest checkpoint
};

}  // namespace chorale
