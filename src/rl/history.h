// What a run remembers of itself: for the progress lines, the report and the checkpoints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/log_prob_report.h"

namespace chorale {

// One GRPO step. Everything but the seconds is the same in every run of a configuration, interrupted or not.
struct StepRecord {
  std::int64_t step = 0;        // from 1
  double reward = 0;            // mean over the step's answers
  double kl = 0;                // mean over tokens, to the reference, before the update
  double loss = 0;              // of the last optimiser step
  double gradient_norm = 0;     // of the last optimiser step, before clipping
  std::int64_t tokens = 0;      // generated, and compared
  std::int64_t different = 0;   // of these, with another log-probability in the trainer
  double max_delta = 0;         // the largest such difference
  double generate_seconds = 0;  // the rollout
  double score_seconds = 0;     // the trainer's log-probabilities before the update
  double reference_seconds = 0;
  double learn_seconds = 0;  // forward, backward, optimiser

  double seconds() const { return generate_seconds + score_seconds + reference_seconds + learn_seconds; }
};

// Mean reward on held-out prompts, most likely token each time. Step 0 is the model after warm-up.
struct EvaluationRecord {
  std::int64_t step = 0;
  double reward = 0;
  std::int64_t prompts = 0;
};

struct History {
  std::vector<double> warmup_losses;  // one per supervised step
  double warmup_seconds = 0;
  std::vector<StepRecord> steps;
  std::vector<EvaluationRecord> evaluations;
  LogProbComparison comparison;  // over every token of the run
};

std::string to_json(const History& history);
// Numbers come back exactly as they were written.
Result<History> history_from_json(const std::string& text, const std::string& file_name);

}  // namespace chorale
