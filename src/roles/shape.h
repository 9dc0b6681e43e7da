// The two shapes of a configuration: a section for each role, or verl's joint section for three of them.
#pragma once

#include <string_view>

#include "chorale/roles.h"
#include "roles/config.h"

namespace chorale {

inline constexpr std::string_view verl_section = "actor_rollout_ref";

// verl keeps actor, rollout and ref in one section, with the model that they share.
bool is_in_verl_section(Role role);

// A role's key stands in its own section or in verl's joint one, not in both. The command line wins over the
// file, whichever shape either uses.
Result<ConfigNode> find_role_key(const Config& config, Role role, std::string_view key);

// The model's own section, or the one in verl's shape.
ConfigNode find_model_section(const Config& config);

}  // namespace chorale
