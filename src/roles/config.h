// Config: the one reader of configuration files, for roles and for runs.
//
//     CHORALE_ASSIGN_OR_RETURN(Config config, Config::load("grpo.yaml", {"trainer.steps=10"}));
//     const ConfigNode trainer = config["trainer"];
//     CHORALE_RETURN_IF_ERROR(trainer["steps"].read(steps, 1, 100'000));        // stays as it was if not
//     given CHORALE_RETURN_IF_ERROR(trainer["folder"].required());
//     CHORALE_RETURN_IF_ERROR(trainer["folder"].read(folder));
//     CHORALE_RETURN_IF_ERROR(config.reject_unknown());                         // every key nobody asked for
//
// A value may be a reference `${section.key}` to any other value or section of the file; it is followed when
// it is read. A key without a value (`critic:`) counts as not given. Every error names the file, the line and
// the key. Which keys are known needs no list of its own: they are the ones that were asked for. Not
// thread-safe while it is read.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/status.h"
#include "roles/yaml.h"

namespace chorale {

// A place in a configuration, there or not. Cheap to copy; keeps the file's tree alive.
class ConfigNode {
 public:
  // False if the key is not in the file or has no value. A place that cannot be reached (a broken reference,
  // a key of what is not a section) counts as there, so that reading it tells the error.
  bool exists() const { return value_ != nullptr || !problem_.is_ok(); }
  bool is_list() const { return value_ != nullptr && value_->kind == YamlNode::Kind::list; }
  bool is_section() const { return value_ != nullptr && value_->kind == YamlNode::Kind::map; }
  bool from_command_line() const { return origin_ != nullptr && origin_->line == 0; }

  const std::string& path() const { return path_; }  // "rollout.overrides[1].layers"
  std::string source() const;                        // "grpo.yaml:7 (rollout.attn_implementation)"

  ConfigNode operator[](std::string_view key) const;  // of a section
  Result<std::vector<ConfigNode>> items() const;      // of a list; none if not given
  Result<std::vector<ConfigNode>> entries() const;    // of a section whose keys are free; none if not given
  std::string key() const { return origin_ == nullptr ? "" : origin_->key; }

  // Each leaves `value` as it was if the key is not given, and fails if it is given but does not fit.
  Status read(std::string& value) const;
  Status read(bool& value) const;
  template <std::integral T>
  Status read(T& value, std::int64_t least = least_of<T>(), std::int64_t most = most_of<T>()) const {
    std::int64_t number = 0;
    if (!exists()) return {};
    CHORALE_RETURN_IF_ERROR(read_integer(number, least, most));
    value = static_cast<T>(number);
    return {};
  }
  template <std::floating_point T>
  Status read(T& value, double least = std::numeric_limits<T>::lowest(),
              double most = std::numeric_limits<T>::max()) const {
    double number = 0;
    if (!exists()) return {};
    CHORALE_RETURN_IF_ERROR(read_number(number, least, most));
    value = static_cast<T>(number);
    return {};
  }
  Status read_choice(std::string& value, std::span<const std::string_view> choices) const;

  Status required() const;                       // fails if not given
  Status error(std::string_view message) const;  // invalid_argument: "grpo.yaml:7: rollout.n: <message>"
  // Keys of this section that nobody asks for belong to another reader: let them pass, unless one looks like
  // a misspelling of a key that was asked for.
  void allow_other_keys() const;

 private:
  friend class Config;
  friend class ReferenceWalk;
  struct File;

  template <class T>
  static constexpr std::int64_t least_of() {
    return std::is_signed_v<T> ? static_cast<std::int64_t>(std::numeric_limits<T>::min()) : 0;
  }
  template <class T>
  static constexpr std::int64_t most_of() {
    constexpr auto most = std::numeric_limits<std::int64_t>::max();
    return sizeof(T) < sizeof most ? static_cast<std::int64_t>(std::numeric_limits<T>::max()) : most;
  }
  ConfigNode(std::shared_ptr<const File> file, YamlNode* origin, std::string path);
  ConfigNode(std::shared_ptr<const File> file, std::string path, Status problem);
  Result<std::vector<ConfigNode>> children(YamlNode::Kind kind) const;
  Status expect(YamlNode::Kind kind) const;
  Status read_integer(std::int64_t& value, std::int64_t least, std::int64_t most) const;
  Status read_number(double& value, double least, double most) const;

  std::shared_ptr<const File> file_;
  YamlNode* origin_ = nullptr;  // what the file says in this place
  YamlNode* value_ = nullptr;   // what that comes to, references followed; null: not given
  YamlNode* around_ = nullptr;  // the section that this place would be in, if it is not there
  std::string path_, value_path_;
  Status problem_;  // why this place cannot be reached
};

class Config {
 public:
  // `overrides`: "section.key=value" from the command line, later ones winning; the value is YAML, too. An
  // override takes the place of what the file says. (A leading "+", as Hydra's users write, is allowed.)
  static Result<Config> load(const std::string& path, const std::vector<std::string>& overrides = {});
  static Result<Config> parse(std::string_view yaml, std::string_view file_name,
                              const std::vector<std::string>& overrides = {});

  ConfigNode root() const;
  ConfigNode operator[](std::string_view section) const { return root()[section]; }
  // Fails on the first key of the file that nobody has asked for yet, with the known key it resembles. The
  // last thing that a reader of the whole file calls.
  Status reject_unknown() const;

 private:
  explicit Config(std::shared_ptr<const ConfigNode::File> file) : file_(std::move(file)) {}
  std::shared_ptr<const ConfigNode::File> file_;
};

// In a file that describes a whole run, lets pass every key that nobody asks for: for a reader of the roles
// that has no use for the rest. Afterwards, reject_unknown.
void allow_keys_of_runs(const Config& config);

// The one of `known` that a person who wrote `name` most likely meant, or "" if none is near.
std::string_view nearest_name(std::string_view name, std::span<const std::string_view> known);
// The end of a sentence about a name that is not known: "(did you mean eager?)" or "(known here: eager,
// sdpa)".
std::string suggest_name(std::string_view name, std::span<const std::string_view> known);

}  // namespace chorale
