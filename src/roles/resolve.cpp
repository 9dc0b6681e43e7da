// From wishes to implementations: who decides, what can serve, and why the others do not.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "implementations/registry.h"
#include "roles/state.h"

namespace chorale {
namespace {

// Fills in every candidate, and what runs: the one name that was asked for, or for `auto` the first that can.
void choose(Resolution& resolution) {
  std::string_view chosen_name;
  for (const ImplementationName& entry : implementation_names()) {
    const bool is_elsewhere = entry.rollout_only && resolution.role != Role::rollout;
    const auto servant =
        is_elsewhere ? Result<const Implementation*>(Status::unsupported("for the rollout only"))
                     : first_supported(entry, resolution.problem, resolution.device, {&resolution.phase, 1});
    Candidate candidate{std::string(entry.name), servant.has_value(), servant.status().message()};
    const bool is_auto = resolution.requested == "auto";
    const bool is_wanted = is_auto ? !entry.rollout_only : entry.name == resolution.requested;
    if (servant && is_wanted && chosen_name.empty()) {
      chosen_name = entry.name;
      resolution.chosen = *servant;
      const std::string_view served_by = (*servant)->name();
      candidate.reason = served_by == entry.name ? "chosen" : fmt::format("chosen, served by {}", served_by);
    } else if (servant) {
      candidate.reason = !is_auto    ? "not asked for"
                         : is_wanted ? fmt::format("not needed: {} was chosen", chosen_name)
                                     : "not part of auto: ask for it by name";
    }
    resolution.candidates.push_back(std::move(candidate));
  }
}

// Why nothing was chosen.
Status refusal(const Resolution& resolution) {
  const std::string where = fmt::format("{} {} in {}", name(resolution.role), name(resolution.phase),
                                        describe_layers(resolution.first_layer, resolution.last_layer));
  std::vector<std::string> reasons, able;
  for (const Candidate& candidate : resolution.candidates) {
    if (candidate.supported)
      able.push_back(candidate.name);
    else if (resolution.requested == "auto" || candidate.name == resolution.requested)
      reasons.push_back(resolution.requested == "auto"
                            ? fmt::format("{}: {}", candidate.name, candidate.reason)
                            : candidate.reason);
  }
  return Status::unsupported(fmt::format(
      "{}: {} cannot serve {}: {} (what can: {})", resolution.source, resolution.requested, where,
      fmt::join(reasons, "; "), able.empty() ? "nothing here" : fmt::format("{}", fmt::join(able, ", "))));
}

bool runs(Role role, Phase phase) {
  const std::vector<Phase> own = phases(role);
  return std::find(own.begin(), own.end(), phase) != own.end();
}

}  // namespace

std::string_view name(Role role) {
  switch (role) {
    case Role::actor:
      return "actor";
    case Role::rollout:
      return "rollout";
    case Role::ref:
      return "ref";
    case Role::critic:
      return "critic";
    case Role::reward_model:
      return "reward_model";
  }
  return "";
}

std::vector<Phase> phases(Role role) {
  switch (role) {
    case Role::actor:
    case Role::critic:
      return {Phase::forward, Phase::backward};
    case Role::rollout:
      return {Phase::prefill, Phase::decode};
    case Role::ref:
    case Role::reward_model:
      return {Phase::forward};
  }
  return {};
}

std::string describe_layers(int first, int last) {
  return first == last ? fmt::format("layer {}", first) : fmt::format("layers {}-{}", first, last);
}

Wish Roles::State::wish(Role role, int layer, Phase phase) const {
  const auto found = wishes.find(role);
  const Wish* asked = nullptr;
  if (found != wishes.end()) {
    if (found->second.own) asked = &*found->second.own;
    for (const Override& entry : found->second.overrides)
      if (entry.covers(layer, phase)) asked = &entry.wish;
  }
  if (asked != nullptr && !asked->is_auto()) return *asked;
  if (environment) return *environment;
  return asked != nullptr ? *asked : Wish{"auto", "default"};
}

Status Roles::State::check_layers(int layers) const {
  for (const auto& [role, asked] : wishes) {
    for (const Override& entry : asked.overrides) {
      if (!entry.layers || entry.layers->last < layers) continue;
      return Status::out_of_range(fmt::format("{}: {}: the model has layers 0-{}", entry.source,
                                              describe_layers(entry.layers->first, entry.layers->last),
                                              layers - 1));
    }
  }
  return {};
}

Result<Resolution> Roles::State::resolve(Role role, const Problem& problem, const Device& device, int first,
                                         int last, Phase phase) const {
  CHORALE_RETURN_IF_ERROR(problem.validate());
  if (first < 0) return Status::out_of_range(fmt::format("layer {}: must be at least 0", first));
  if (!runs(role, phase))
    return Status::invalid_argument(fmt::format("{} does not run {}", name(role), name(phase)));

  Wish asked = wish(role, first, phase);
  Resolution resolution;
  resolution.role = role;
  resolution.first_layer = first;
  resolution.last_layer = last;
  resolution.phase = phase;
  resolution.requested = std::move(asked.name);
  resolution.source = std::move(asked.source);
  resolution.problem = problem;
  resolution.device = device;
  choose(resolution);
  if (resolution.chosen == nullptr) return refusal(resolution);
  resolution.implementation = resolution.chosen->name();
  resolution.fingerprint = resolution.chosen->fingerprint(problem, device);
  return resolution;
}

Result<std::vector<Resolution>> Roles::State::resolve_layers(Role role, const Problem& problem,
                                                             const Device& device, int layers,
                                                             Phase phase) const {
  std::set<int> starts{0};  // wishes change only where an override begins or has ended
  if (const auto found = wishes.find(role); found != wishes.end()) {
    for (const Override& entry : found->second.overrides) {
      if (!entry.layers) continue;
      starts.insert(entry.layers->first);
      if (entry.layers->last < layers - 1) starts.insert(entry.layers->last + 1);
    }
  }
  std::vector<Resolution> resolutions;
  for (auto start = starts.begin(); start != starts.end(); ++start) {
    const int last = std::next(start) == starts.end() ? layers - 1 : *std::next(start) - 1;
    const Wish asked = wish(role, *start, phase);
    if (!resolutions.empty() && resolutions.back().requested == asked.name &&
        resolutions.back().source == asked.source) {
      resolutions.back().last_layer = last;
      continue;
    }
    CHORALE_ASSIGN_OR_RETURN(Resolution resolution, resolve(role, problem, device, *start, last, phase));
    resolutions.push_back(std::move(resolution));
  }
  return resolutions;
}

Roles::Roles() : state_(std::make_shared<State>()) {}
Roles::Roles(const Roles&) = default;
Roles::Roles(Roles&&) noexcept = default;
Roles& Roles::operator=(const Roles&) = default;
Roles& Roles::operator=(Roles&&) noexcept = default;
Roles::~Roles() = default;

Parity Roles::parity() const { return state_->parity; }
const std::vector<std::string>& Roles::warnings() const { return state_->warnings; }
std::optional<DType> Roles::kv_cache_dtype() const { return state_->kv_cache_dtype; }

Result<Problem> Roles::problem() const {
  if (!state_->model) return state_->model.status();
  Problem problem = state_->model.value().problem;
  problem.kv_dtype = state_->kv_cache_dtype;
  return problem;
}

int Roles::layers() const { return state_->model ? state_->model.value().layers : 0; }

Result<Resolution> Roles::resolve(Role role, const Problem& problem, const Device& device, int layer,
                                  Phase phase) const {
  return state_->resolve(role, problem, device, layer, layer, phase);
}

Result<Resolution> Roles::resolve(Role role, const Problem& problem, const Device& device) const {
  return resolve(role, problem, device, 0, phases(role).front());
}

Result<ResolvedRoles> Roles::State::resolve_phases(
    const Problem& problem, const Device& device, int layers,
    const std::vector<std::pair<Role, std::vector<Phase>>>& wanted) const {
  if (layers < 1) return Status::out_of_range(fmt::format("layers {}: must be at least 1", layers));
  CHORALE_RETURN_IF_ERROR(check_layers(layers));
  ResolvedRoles resolved;
  resolved.warnings = warnings;
  for (const auto& [role, its_phases] : wanted) {
    std::vector<Resolution>& all = resolved.roles[role];
    for (const Phase phase : its_phases) {
      CHORALE_ASSIGN_OR_RETURN(auto of_phase, resolve_layers(role, problem, device, layers, phase));
      std::move(of_phase.begin(), of_phase.end(), std::back_inserter(all));
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Resolution& x, const Resolution& y) { return x.first_layer < y.first_layer; });
  }
  resolved.parity =
      compare_actor_and_rollout(parity, resolved.roles[Role::actor], resolved.roles[Role::rollout]);
  return resolved;
}

Result<ResolvedRoles> Roles::resolve_all(const Problem& problem, const Device& device, int layers) const {
  std::vector<std::pair<Role, std::vector<Phase>>> everything;
  for (const Role role : all_roles) everything.emplace_back(role, phases(role));
  return state_->resolve_phases(problem, device, layers, everything);
}

Result<ResolvedRoles> Roles::resolve_compared(const Problem& problem, const Device& device,
                                              int layers) const {
  return state_->resolve_phases(problem, device, layers,
                                {{Role::actor, {Phase::forward}}, {Role::rollout, phases(Role::rollout)}});
}

Result<Attention> Resolution::build() const {
  if (chosen == nullptr)
    return Status::invalid_argument("this resolution was never resolved: nothing was chosen");
  return Attention(problem, *chosen, device);
}

}  // namespace chorale
