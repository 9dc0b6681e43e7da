// Roles from a configuration: which keys there are, in which of the two shapes, and what wins.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/settings.h"
#include "roles/config.h"
#include "roles/shape.h"
#include "roles/state.h"

namespace chorale {
namespace {

constexpr std::string_view value_key = "attn_implementation";

// What a file says beside roles and model when it describes a whole run: Chorale's sections, then verl's.
constexpr std::array run_sections{"name",
                                  "seed",
                                  "threads",
                                  "task",
                                  "warmup",
                                  "grpo",
                                  "optimizer",
                                  "trainer",
                                  "algorithm",
                                  "data",
                                  "reward",
                                  "ray_init",
                                  "ray_kwargs",
                                  "reward_manager",
                                  "global_profiler",
                                  "transfer_queue",
                                  "custom_reward_function"};

ConfigNode deprecated_key(const Config& config, Role role) {
  const ConfigNode section = config[is_in_verl_section(role) ? verl_section : name(role)];
  return section["model"]["override_config"][value_key];
}

// One warning for each deprecated key, with the keys that take its place.
std::vector<std::string> deprecation_warnings(const Config& config) {
  std::map<std::string, std::vector<std::string>> replacements;
  for (const Role role : all_roles) {
    const ConfigNode node = deprecated_key(config, role);
    const std::string prefix = is_in_verl_section(role) ? fmt::format("{}.", verl_section) : "";
    if (node.exists())
      replacements[node.source()].push_back(fmt::format("{}{}.{}", prefix, name(role), value_key));
  }
  std::vector<std::string> warnings;
  for (const auto& [source, keys] : replacements)
    warnings.push_back(fmt::format("{} is deprecated: use {}", source, fmt::join(keys, ", ")));
  return warnings;
}

std::vector<std::string_view> known_names() {
  std::vector<std::string_view> names{"auto"};
  for (const ImplementationName& entry : implementation_names()) names.push_back(entry.name);
  return names;
}

Result<std::optional<Wish>> read_wish(const ConfigNode& node) {
  std::string name;
  CHORALE_RETURN_IF_ERROR(node.read_choice(name, known_names()));
  if (!node.exists()) return std::optional<Wish>();
  return std::optional(Wish{std::move(name), node.source()});
}

Result<std::optional<Wish>> read_environment() {
  const Settings settings = read_settings();
  const bool is_ours = settings.attn_implementation.has_value();
  const auto& name = is_ours ? settings.attn_implementation : settings.verl_attn_implementation;
  if (!name) return std::optional<Wish>();
  const std::string source = fmt::format(
      "environment variable {}", is_ours ? "CHORALE_ATTN_IMPLEMENTATION" : "VERL_ATTN_IMPLEMENTATION");
  const auto known = known_names();
  if (std::find(known.begin(), known.end(), *name) == known.end())
    return Status::invalid_argument(
        fmt::format("{}: '{}' is not known {}", source, *name, suggest_name(*name, known)));
  return std::optional(Wish{*name, source});
}

// "5" or "0-3".
Status read_layers(const ConfigNode& node, Override& entry) {
  std::string text;
  CHORALE_RETURN_IF_ERROR(node.read(text));
  if (!node.exists()) return {};
  const auto parse = [](std::string_view digits) {
    int layer = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    return error == std::errc() && end == digits.data() + digits.size() ? layer : -1;
  };
  const std::size_t dash = text.find('-');
  const int first = parse(text.substr(0, dash));
  const int last = dash == std::string::npos ? first : parse(text.substr(dash + 1));
  entry.layers = {first, last};
  if (first >= 0 && last >= first) return {};
  return node.error(fmt::format("must be a layer or an ascending range such as 0-3, not '{}'", text));
}

Result<Override> read_override(Role role, const ConfigNode& node) {
  Override entry;
  entry.source = node.source();
  CHORALE_RETURN_IF_ERROR(read_layers(node["layers"], entry));

  const std::vector<Phase> own_phases = phases(role);
  std::vector<std::string_view> names;
  for (const Phase phase : own_phases) names.push_back(name(phase));
  std::string phase_name;
  CHORALE_RETURN_IF_ERROR(node["phase"].read_choice(phase_name, names));
  const auto named = std::find(names.begin(), names.end(), phase_name);
  if (named != names.end()) entry.phase = own_phases[static_cast<std::size_t>(named - names.begin())];

  CHORALE_RETURN_IF_ERROR(node[value_key].required());
  CHORALE_ASSIGN_OR_RETURN(const auto wish, read_wish(node[value_key]));
  entry.wish = *wish;
  return entry;
}

Result<RoleWishes> read_role(const Config& config, Role role) {
  RoleWishes wishes;
  CHORALE_ASSIGN_OR_RETURN(ConfigNode value, find_role_key(config, role, value_key));
  if (!value.exists()) value = deprecated_key(config, role);
  CHORALE_ASSIGN_OR_RETURN(wishes.own, read_wish(value));

  CHORALE_ASSIGN_OR_RETURN(const ConfigNode list, find_role_key(config, role, "overrides"));
  CHORALE_ASSIGN_OR_RETURN(const auto entries, list.items());
  for (const ConfigNode& entry : entries) {
    CHORALE_ASSIGN_OR_RETURN(Override override_, read_override(role, entry));
    wishes.overrides.push_back(std::move(override_));
  }
  return wishes;
}

// Parity is between two roles: it has one place, beside them.
Result<Parity> read_parity(const Config& config) {
  for (const Role role : all_roles) {
    CHORALE_ASSIGN_OR_RETURN(const ConfigNode misplaced, find_role_key(config, role, "parity"));
    if (misplaced.exists()) return misplaced.error("belongs at the top level of the file, beside the roles");
  }
  constexpr std::array<std::string_view, 2> choices{"off", "bitwise"};
  std::string parity = "off";
  CHORALE_RETURN_IF_ERROR(config["parity"].read_choice(parity, choices));
  return parity == "bitwise" ? Parity::bitwise : Parity::off;
}

// What the rollout keeps keys and values in, if not what the model computes in. Every role takes part:
// trainers replay over the same quantised values.
Result<std::optional<DType>> read_kv_cache_dtype(const Config& config) {
  CHORALE_ASSIGN_OR_RETURN(const ConfigNode node, find_role_key(config, Role::rollout, "kv_cache_dtype"));
  const std::array<std::string_view, 2> choices{"auto", name(DType::float8_e4m3)};
  std::string text = "auto";
  CHORALE_RETURN_IF_ERROR(node.read_choice(text, choices));
  return text == "auto" ? std::optional<DType>() : std::optional(DType::float8_e4m3);
}

Result<ModelSection> read_model(const Config& config) {
  const ConfigNode section = find_model_section(config);
  if (!section.exists())
    return Status::not_found(
        config.root()
            .error("has no model section: give num_hidden_layers, num_attention_heads and "
                   "head_dim there, or as model.head_dim=... on the command line")
            .message());
  return read_model_section(section);
}

}  // namespace

void allow_keys_of_runs(const Config& config) {
  for (const Role role : all_roles) config[name(role)]["model"].allow_other_keys();  // a critic's own, say
  bool is_run = false;
  for (const char* section : run_sections) {
    is_run = is_run || config[section].exists();
    config[section].allow_other_keys();
  }
  if (!is_run) return;
  config["model"].allow_other_keys();
  const ConfigNode joint = config[verl_section];
  joint.allow_other_keys();
  joint["model"].allow_other_keys();
  joint["model"]["override_config"].allow_other_keys();
  for (const Role role : all_roles) {
    config[name(role)].allow_other_keys();
    config[name(role)]["model"]["override_config"].allow_other_keys();
    joint[name(role)].allow_other_keys();
  }
}

Result<Roles> Roles::from(const Config& config) {
  auto state = std::make_shared<State>();
  for (const Role role : all_roles) {
    CHORALE_ASSIGN_OR_RETURN(state->wishes[role], read_role(config, role));
  }
  CHORALE_ASSIGN_OR_RETURN(state->environment, read_environment());
  CHORALE_ASSIGN_OR_RETURN(state->parity, read_parity(config));
  CHORALE_ASSIGN_OR_RETURN(state->kv_cache_dtype, read_kv_cache_dtype(config));
  // Goes with it; only who fills a cache needs its value.
  CHORALE_RETURN_IF_ERROR(find_role_key(config, Role::rollout, "kv_cache_scale").status());
  state->warnings = deprecation_warnings(config);

  // A model that is not here (verl's `path` may be a hub's name) matters only to who asks for the problem.
  state->model = read_model(config);
  if (!state->model && state->model.status().code() == Code::invalid_argument) return state->model.status();
  if (state->model) CHORALE_RETURN_IF_ERROR(state->check_layers(state->model->layers));

  Roles roles;
  roles.state_ = std::move(state);
  return roles;
}

namespace {

// A file that is read for its roles alone: what belongs to a run is somebody else's, all the rest is ours.
Result<Roles> from_whole(const Config& config) {
  CHORALE_ASSIGN_OR_RETURN(Roles roles, Roles::from(config));
  allow_keys_of_runs(config);
  CHORALE_RETURN_IF_ERROR(config.reject_unknown());
  return roles;
}

}  // namespace

Result<Roles> Roles::load(const std::string& path, const std::vector<std::string>& overrides) {
  CHORALE_ASSIGN_OR_RETURN(const Config config, Config::load(path, overrides));
  return from_whole(config);
}

Result<Roles> Roles::parse(std::string_view yaml, std::string_view file_name,
                           const std::vector<std::string>& overrides) {
  CHORALE_ASSIGN_OR_RETURN(const Config config, Config::parse(yaml, file_name, overrides));
  return from_whole(config);
}

}  // namespace chorale
