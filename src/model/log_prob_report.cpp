#include "model/log_prob_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace chorale {
namespace {

double distance(double x, double y) {
  const double difference = std::abs(x - y);
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

}  // namespace

void LogProbComparison::add(float rollout, float trainer) {
  ++tokens;
  if (std::bit_cast<std::uint32_t>(rollout) == std::bit_cast<std::uint32_t>(trainer)) return;
  ++different;
  const double delta = distance(trainer, rollout);
  const double diff =
      distance(std::exp(static_cast<double>(trainer)), std::exp(static_cast<double>(rollout)));
  max_delta = std::max(max_delta, delta), sum_delta += delta;
  max_diff = std::max(max_diff, diff), sum_diff += diff;
}

Status LogProbComparison::add(std::span<const float> rollout, std::span<const float> trainer) {
  if (rollout.size() != trainer.size())
    return Status::invalid_argument(
        fmt::format("{} log-probabilities of the rollout against {} of the trainer: must be as many",
                    rollout.size(), trainer.size()));
  for (std::size_t i = 0; i < rollout.size(); ++i) add(rollout[i], trainer[i]);
  return Status::ok();
}

void LogProbComparison::add(const LogProbComparison& other) {
  tokens += other.tokens, different += other.different;
  max_delta = std::max(max_delta, other.max_delta), sum_delta += other.sum_delta;
  max_diff = std::max(max_diff, other.max_diff), sum_diff += other.sum_diff;
}

std::string LogProbComparison::report() const {
  return fmt::format(
      "LOGPROB COMPARISON RESULTS\n"
      "Bitwise identical : {}\n"
      "Tokens checked    : {}\n"
      "Tokens different  : {}\n"
      "Max delta         : {:.6e}\n"
      "Avg delta         : {:.6e}\n"
      "Diff mean         : {:.6e}\n"
      "Diff max          : {:.6e}\n",
      identical() ? "True" : "False", tokens, different, max_delta, average_delta(), mean_diff(), max_diff);
}

}  // namespace chorale
