// Attention: choosing an implementation by name, and running it with plans that fit.
#include "chorale/attention.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "implementations/registry.h"
#include "implementations/validate.h"

namespace chorale {
namespace {

using Phases = std::span<const Phase>;

Result<const Implementation*> choose_first(const Problem& problem, const Device& device, Phases phases) {
  std::vector<std::string> reasons;
  for (const ImplementationName& name : implementation_names()) {
    if (name.rollout_only) continue;  // never what `auto` means
    const auto servant = first_supported(name, problem, device, phases);
    if (servant) return *servant;
    reasons.push_back(fmt::format("{}: {}", name.name, servant.status().message()));
  }
  return Status::unsupported(fmt::format("no attention implementation can serve {}: {}", problem.describe(),
                                         fmt::join(reasons, "; ")));
}

Result<const Implementation*> choose_named(std::string_view wanted, const Problem& problem,
                                           const Device& device, Phases phases) {
  const ImplementationName* name = find_implementation_name(wanted);
  if (name == nullptr) {
    std::vector<std::string_view> known{"auto"};
    for (const ImplementationName& entry : implementation_names()) known.push_back(entry.name);
    return Status::invalid_argument(
        fmt::format("attention implementation '{}': must be one of {}", wanted, fmt::join(known, ", ")));
  }
  auto servant = first_supported(*name, problem, device, phases);
  if (!servant) return servant.status().with_context(wanted);
  return servant;
}

}  // namespace

Result<Attention> Attention::create(Problem problem, std::string_view implementation, Device device,
                                    std::initializer_list<Phase> phases) {
  CHORALE_RETURN_IF_ERROR(problem.validate());
  const Phases wanted(phases.begin(), phases.size());
  CHORALE_ASSIGN_OR_RETURN(const Implementation* chosen,
                           implementation == "auto" ? choose_first(problem, device, wanted)
                                                    : choose_named(implementation, problem, device, wanted));
  return Attention(std::move(problem), *chosen, device);
}

Attention::Attention(Problem problem, const Implementation& implementation, Device device)
    : problem_(std::move(problem)), implementation_(&implementation), device_(device) {}

Result<std::shared_ptr<const Plan>> Attention::plan(const Batch& batch) const {
  return implementation_->plan(problem_, batch, device_);
}

Status Attention::forward(const Plan& plan, const ForwardTensors& tensors) const {
  CHORALE_RETURN_IF_ERROR(check_same_problem(plan, problem_));
  return implementation_->forward(plan, tensors);
}

Status Attention::backward(const Plan& plan, const BackwardTensors& tensors) const {
  CHORALE_RETURN_IF_ERROR(check_same_problem(plan, problem_));
  return implementation_->backward(plan, tensors);
}

}  // namespace chorale
