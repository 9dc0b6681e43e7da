#include "roles/shape.h"

#include <fmt/format.h>

namespace chorale {

bool is_in_verl_section(Role role) {
  return role == Role::actor || role == Role::rollout || role == Role::ref;
}

Result<ConfigNode> find_role_key(const Config& config, Role role, std::string_view key) {
  const ConfigNode own = config[name(role)][key];
  if (!is_in_verl_section(role)) return own;
  const ConfigNode joint = config[verl_section][name(role)][key];
  if (!own.exists() || !joint.exists()) return own.exists() ? own : joint;
  if (own.from_command_line() != joint.from_command_line()) return own.from_command_line() ? own : joint;
  return joint.error(fmt::format("is given a second time, first in {}: keep one", own.source()));
}

ConfigNode find_model_section(const Config& config) {
  const ConfigNode own = config["model"];
  return own.exists() ? own : config[verl_section]["model"];
}

}  // namespace chorale
