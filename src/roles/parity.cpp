// Parity: whether actor and rollout do the same arithmetic in every layer, and if not, where and how they
// differ.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "roles/state.h"

namespace chorale {
namespace {

const Resolution& of_layer(const std::vector<Resolution>& resolutions, Phase phase, int layer) {
  return *std::find_if(resolutions.begin(), resolutions.end(), [&](const Resolution& resolution) {
    return resolution.phase == phase && resolution.first_layer <= layer && layer <= resolution.last_layer;
  });
}

// "" if the rollout agrees with the actor in this layer.
std::string difference_in_layer(const std::vector<Resolution>& actor, const std::vector<Resolution>& rollout,
                                int layer) {
  const Fingerprint& trained = of_layer(actor, Phase::forward, layer).fingerprint;
  const auto difference = [&](Phase phase) {
    return of_layer(rollout, phase, layer).fingerprint.difference(trained, "in rollout", "in actor");
  };
  const std::string prefill = difference(Phase::prefill), decode = difference(Phase::decode);
  if (prefill == decode) return prefill.empty() ? "" : ": " + prefill;
  std::string text;
  if (!prefill.empty()) text += ", prefill: " + prefill;
  if (!decode.empty()) text += fmt::format("{}, decode: {}", text.empty() ? "" : ";", decode);
  return text;
}

}  // namespace

ParityReport compare_actor_and_rollout(Parity requested, const std::vector<Resolution>& actor,
                                       const std::vector<Resolution>& rollout) {
  std::set<int> starts;  // of the ranges in which nothing changes
  int layers = 0;
  for (const auto* role : {&actor, &rollout}) {
    for (const Resolution& resolution : *role) {
      starts.insert(resolution.first_layer);
      layers = std::max(layers, resolution.last_layer + 1);
    }
  }

  struct Range {
    int first, last;
    std::string difference;
  };
  std::vector<Range> ranges;
  for (const int start : starts) {
    if (!ranges.empty()) ranges.back().last = start - 1;
    std::string difference = difference_in_layer(actor, rollout, start);
    if (ranges.empty() || ranges.back().difference != difference)
      ranges.push_back({start, layers - 1, std::move(difference)});
    else
      ranges.back().last = layers - 1;
  }

  std::vector<std::string> differences;
  for (const Range& range : ranges)
    if (!range.difference.empty())
      differences.push_back(describe_layers(range.first, range.last) + range.difference);
  if (!differences.empty()) return {requested, false, fmt::format("{}", fmt::join(differences, ". "))};
  return {requested, true,
          "actor's forward and rollout's prefill and decode have the same fingerprint in every layer "
          "(ref, critic and reward_model take no part)"};
}

Status ResolvedRoles::check() const {
  if (parity.requested == Parity::off || parity.agree) return {};
  return Status::parity_violation(
      fmt::format("parity is bitwise, but actor and rollout differ: {}", parity.reason));
}

}  // namespace chorale
