// What was resolved, for people and for programs.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "roles/state.h"

namespace chorale {
namespace {

// Everything that a resolution says of itself but the phase.
bool reads_alike(const Resolution& x, const Resolution& y) {
  const auto same = [](const Candidate& a, const Candidate& b) {
    return a.name == b.name && a.supported == b.supported && a.reason == b.reason;
  };
  return x.first_layer == y.first_layer && x.last_layer == y.last_layer && x.requested == y.requested &&
         x.source == y.source && x.implementation == y.implementation && x.fingerprint == y.fingerprint &&
         std::equal(x.candidates.begin(), x.candidates.end(), y.candidates.begin(), y.candidates.end(), same);
}

std::string explain_phases(const Resolution& resolution, std::span<const std::string_view> phase_names) {
  std::string text = fmt::format("  {}, {}\n", describe_layers(resolution.first_layer, resolution.last_layer),
                                 fmt::join(phase_names, " and "));
  text += fmt::format("    asked        {}, by {}\n", resolution.requested, resolution.source);
  text += fmt::format("    runs         {}\n", resolution.implementation);
  text += fmt::format("    fingerprint  {}\n", resolution.fingerprint.to_string());
  std::size_t width = 0;
  for (const Candidate& candidate : resolution.candidates) width = std::max(width, candidate.name.size());
  for (const Candidate& candidate : resolution.candidates)
    text += fmt::format("      {:<{}}  {:<3}  {}\n", candidate.name, width,
                        candidate.supported ? "yes" : "no", candidate.reason);
  return text;
}

std::string explain_role(Role role, const std::vector<Resolution>& resolutions) {
  std::string text = fmt::format("{}\n", name(role));
  for (std::size_t i = 0; i < resolutions.size();) {
    std::vector<std::string_view> phase_names;
    const Resolution& first = resolutions[i];
    for (; i < resolutions.size() && reads_alike(first, resolutions[i]); ++i)
      phase_names.push_back(name(resolutions[i].phase));
    text += explain_phases(first, phase_names);
  }
  return text;
}

std::string_view name(Parity parity) { return parity == Parity::bitwise ? "bitwise" : "off"; }

nlohmann::ordered_json to_json(const Resolution& resolution) {
  nlohmann::ordered_json candidates = nlohmann::ordered_json::array();
  for (const Candidate& candidate : resolution.candidates)
    candidates.push_back(
        {{"name", candidate.name}, {"supported", candidate.supported}, {"reason", candidate.reason}});
  return {{"layers", fmt::format("{}-{}", resolution.first_layer, resolution.last_layer)},
          {"phase", chorale::name(resolution.phase)},
          {"requested", resolution.requested},
          {"source", resolution.source},
          {"implementation", resolution.implementation},
          {"fingerprint", resolution.fingerprint.to_string()},
          {"candidates", std::move(candidates)}};
}

}  // namespace

std::string Resolution::explain() const { return explain_role(role, {*this}); }

std::string ResolvedRoles::explain() const {
  std::string text;
  for (const std::string& warning : warnings) text += fmt::format("warning: {}\n", warning);
  if (!roles.empty() && !roles.begin()->second.empty()) {
    const Resolution& any = roles.begin()->second.front();
    text += fmt::format("problem: {}\ndevice: {}\n\n", any.problem.describe(), any.device.describe());
  }
  for (const auto& [role, resolutions] : roles) text += explain_role(role, resolutions);
  text += fmt::format("\nparity: {}; actor and rollout {}\n  {}\n", name(parity.requested),
                      parity.agree ? "agree to the bit" : "differ", parity.reason);
  return text;
}

std::string ResolvedRoles::to_json() const {
  nlohmann::ordered_json json;
  for (const auto& [role, resolutions] : roles) {
    auto& list = json["roles"][std::string(chorale::name(role))] = nlohmann::ordered_json::array();
    for (const Resolution& resolution : resolutions) list.push_back(chorale::to_json(resolution));
  }
  json["parity"] = {
      {"requested", name(parity.requested)}, {"agree", parity.agree}, {"reason", parity.reason}};
  json["warnings"] = warnings;
  // Names from files may hold bytes that are not UTF-8: replaced, never an exception.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace chorale
