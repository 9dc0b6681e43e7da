// verify: the comparison of rollout and trainer alone, for one model and one configuration.
//
// The rollout generates a few requests while every operation's output is noted by request and position; the
// trainer's packed forward computes the same tokens; then the two are compared, log-probabilities and every
// operation's bits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "chorale/roles.h"
#include "chorale/status.h"
#include "model/config.h"
#include "model/log_prob_report.h"
#include "model/model.h"
#include "rl/float64_check.h"
#include "rollout/generator.h"

namespace chorale {

struct VerifyConfig {
  int requests = 8;
  std::int64_t max_new_tokens = 0;  // of each; 0: 32, or half of the model's positions where that is less
  std::uint64_t seed = 1;           // of the prompts, which are random tokens, and of the sampling
  float temperature = 1;
  bool float64 = false;         // compare the trainer's attention with float64's, too
  GeneratorConfig generator{};  // pages 0: as many as the requests can use at once
};

// A token: which sequence (request) and where in it.
struct TokenPlace {
  std::int64_t sequence = 0, position = 0;
  bool operator==(const TokenPlace&) const = default;
};

// The first operation, in the order in which the model computes, whose output differs anywhere.
struct OperationDifference {
  int layer = 0;  // as Observer counts
  std::string operation;
  std::vector<TokenPlace> places;  // whose output differs, ascending
  // The first differing element of the first place.
  std::int64_t element = 0;
  float rollout = 0, trainer = 0;
};

struct VerifyReport {
  LogProbComparison log_probs;
  std::int64_t sequences = 0, positions = 0;  // that the rollout computed and the trainer, too
  std::int64_t outputs = 0;                   // rows of operations compared
  std::optional<OperationDifference> first;
  std::optional<Float64Comparison> float64;

  bool identical() const { return log_probs.identical() && !first; }
  bool passes() const { return identical() && (!float64 || float64->passes()); }
  std::string text() const;
  std::string to_json() const;
};

// `roles` must have resolved actor and rollout for the model's problem.
Result<VerifyReport> verify(const Model& model, const ResolvedRoles& roles, const VerifyConfig& config);

}  // namespace chorale
