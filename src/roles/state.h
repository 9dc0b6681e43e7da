// What a configuration says about attention, read and checked: the inside of Roles.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "chorale/roles.h"
#include "roles/model_section.h"

namespace chorale {

// An implementation that somebody asked for, and where.
struct Wish {
  std::string name;    // of implementation_names(), or "auto"
  std::string source;  // "grpo.yaml:7 (actor.attn_implementation)"
  bool is_auto() const { return name == "auto"; }
};

// An entry of a role's `overrides`: for these layers and this phase its wish stands in for the role's own.
struct Override {
  struct Layers {
    int first, last;  // inclusive
  };
  std::optional<Layers> layers;  // all of the model's, if not said
  std::optional<Phase> phase;    // every phase of the role, if not said
  Wish wish;
  std::string source;

  bool covers(int layer, Phase which) const {
    const bool covers_layer = !layers || (layer >= layers->first && layer <= layers->last);
    return covers_layer && phase.value_or(which) == which;
  }
};

struct RoleWishes {
  std::optional<Wish> own;
  std::vector<Override> overrides;  // later entries win
};

struct Roles::State {
  std::map<Role, RoleWishes> wishes;
  std::optional<Wish> environment;
  Parity parity = Parity::off;
  std::optional<DType> kv_cache_dtype;
  std::vector<std::string> warnings;
  Result<ModelSection> model = Status::not_found("there is no model section: give a Problem");

  // Who decides: the role itself unless it says auto, then the environment, then auto.
  Wish wish(Role role, int layer, Phase phase) const;
  // Fails if an override names layers that a model of so many does not have.
  Status check_layers(int layers) const;
  // One phase of the layers first to last, which must share one wish.
  Result<Resolution> resolve(Role role, const Problem& problem, const Device& device, int first, int last,
                             Phase phase) const;
  // The same for all layers, ranges joined where the wish is the same.
  Result<std::vector<Resolution>> resolve_layers(Role role, const Problem& problem, const Device& device,
                                                 int layers, Phase phase) const;
  // These phases of these roles, and whether actor and rollout agree.
  Result<ResolvedRoles> resolve_phases(const Problem& problem, const Device& device, int layers,
                                       const std::vector<std::pair<Role, std::vector<Phase>>>& wanted) const;
};

// Whether the actor's forward and the rollout's prefill and decode have equal fingerprints in every layer.
ParityReport compare_actor_and_rollout(Parity requested, const std::vector<Resolution>& actor,
                                       const std::vector<Resolution>& rollout);

std::string describe_layers(int first, int last);  // "layer 5", "layers 0-3"

}  // namespace chorale
