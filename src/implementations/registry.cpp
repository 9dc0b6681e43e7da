// The registry: what a user may write, and what serves it.
#include "implementations/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "implementations/cpu/cpu_attention.h"
#include "implementations/cuda/cuda_attention.h"
#include "implementations/eager/eager.h"

namespace chorale {
namespace {

std::vector<ImplementationName> make_names() {
  const std::vector<const Implementation*> tiled = {&cpu_attention()};
  return {
      {.name = "flash_attention_3", .servants = {&cuda_attention()}, .reason = ""},
      {.name = "flash_attention_2", .servants = tiled, .reason = ""},
      {.name = "flex_attention", .servants = tiled, .reason = ""},
      {.name = "sdpa", .servants = {}, .reason = "this build links no vendor's attention library"},
      {.name = "eager", .servants = {&eager_attention()}, .reason = ""},
      {.name = "flashinfer", .servants = tiled, .reason = "", .rollout_only = true},
  };
}

Status supports_all(const Implementation& implementation, const Problem& problem, const Device& device,
                    std::span<const Phase> phases) {
  for (const Phase phase : phases) CHORALE_RETURN_IF_ERROR(implementation.supports(problem, device, phase));
  return Status::ok();
}

}  // namespace

std::span<const ImplementationName> implementation_names() {
  static const std::vector<ImplementationName> names = make_names();
  return names;
}

const ImplementationName* find_implementation_name(std::string_view name) {
  const auto names = implementation_names();
  const auto found =
      std::find_if(names.begin(), names.end(), [&](const auto& entry) { return entry.name == name; });
  return found == names.end() ? nullptr : &*found;
}

Result<const Implementation*> first_supported(const ImplementationName& name, const Problem& problem,
                                              const Device& device, std::span<const Phase> phases) {
  if (name.servants.empty()) return Status::unsupported(std::string(name.reason));
  if (name.rollout_only) {
    const auto other = std::find_if(phases.begin(), phases.end(), [](Phase phase) {
      return phase != Phase::prefill && phase != Phase::decode;
    });
    if (other != phases.end()) {
      return Status::unsupported(fmt::format(
          "serves a rollout's prefill and decode only, and {} was asked for", chorale::name(*other)));
    }
  }
  std::vector<std::string> reasons;
  for (const Implementation* servant : name.servants) {
    const Status status = supports_all(*servant, problem, device, phases);
    if (status.is_ok()) return servant;
    reasons.push_back(status.message());
  }
  return Status::unsupported(fmt::format("{}", fmt::join(reasons, "; ")));
}

}  // namespace chorale
