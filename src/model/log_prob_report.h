// LogProbComparison: what the rollout recorded while generating against what the trainer computed, token by
// token.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "chorale/status.h"

namespace chorale {

// Sums are float64 in the order of add. Plain data, so a checkpoint can keep it and comparisons of several
// steps can be added up. A NaN on one side only, or an infinity against a number, counts as an infinite
// delta.
struct LogProbComparison {
  std::int64_t tokens = 0;              // compared
  std::int64_t different = 0;           // whose log-probabilities are not the same bits
  double max_delta = 0, sum_delta = 0;  // |trainer - rollout| of log-probabilities
  double max_diff = 0, sum_diff = 0;    // |trainer - rollout| of probabilities

  bool identical() const { return different == 0; }
  double average_delta() const { return tokens == 0 ? 0 : sum_delta / static_cast<double>(tokens); }
  double mean_diff() const { return tokens == 0 ? 0 : sum_diff / static_cast<double>(tokens); }

  void add(float rollout, float trainer);
  // Fails if the two do not have the same number of tokens.
  Status add(std::span<const float> rollout, std::span<const float> trainer);
  void add(const LogProbComparison& other);

  // The lines from "LOGPROB COMPARISON RESULTS" to "Diff max", each ended by a newline.
  std::string report() const;
};

}  // namespace chorale
