#include "roles/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/files.h"

namespace chorale {

struct ConfigNode::File {
  std::string name;
  std::unique_ptr<YamlNode> root;

  std::string place(const YamlNode* node) const {
    if (node == nullptr) return name;
    return node->line == 0 ? "command line" : fmt::format("{}:{}", name, node->line);
  }
};

namespace {

std::string join_path(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

// A number that is all of `text`.
template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// How a value is quoted back in a message.
std::string show(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::text) return std::string(name(node.kind));
  constexpr std::size_t longest = 60;
  const std::string_view mark = node.quoted ? "\"" : "'";
  return node.text.size() <= longest ? fmt::format("{0}{1}{0}", mark, node.text)
                                     : fmt::format("{0}{1}...{0}", mark, node.text.substr(0, longest));
}

}  // namespace

// Follows references from one place. The places on the way are kept, so that a cycle can be told; the number
// of steps is bounded, because references to sections that are references can multiply without ever forming a
// cycle.
class ReferenceWalk {
 public:
  struct Place {
    YamlNode* node;  // nullptr: no such key
    std::string path;
  };

  explicit ReferenceWalk(const ConfigNode::File& file) : file_(file) {}

  // Where the value of `place` really stands.
  Result<Place> follow(Place place) {
    while (place.node != nullptr && place.node->kind == YamlNode::Kind::text &&
           place.node->text.find("${") != std::string::npos) {
      const std::string_view text = place.node->text;
      if (!text.starts_with("${") || text.find('}') != text.size() - 1)
        return fail(place, fmt::format("{}: a reference must be the whole value: ${{section.key}}",
                                       show(*place.node)));
      const bool cycle = std::find(way_.begin(), way_.end(), place.path) != way_.end();
      way_.push_back(place.path);
      if (cycle) return fail(place, fmt::format("references go in a circle: {}", fmt::join(way_, " -> ")));
      if (++steps_ > max_steps)
        return fail(place, fmt::format("more than {} references to follow", max_steps));

      const std::string_view target = text.substr(2, text.size() - 3);
      CHORALE_ASSIGN_OR_RETURN(Place found, find(target));
      if (found.node == nullptr)
        return fail(place, fmt::format("{} -> {}: there is no such key", fmt::join(way_, " -> "), target));
      place = std::move(found);
    }
    return place;
  }

 private:
  static constexpr int max_steps = 100;

  // The place that a dotted path names. Sections on the way may be references themselves.
  Result<Place> find(std::string_view path) {
    Place place{file_.root.get(), ""};
    while (place.node != nullptr) {
      const std::size_t dot = std::min(path.find('.'), path.size());
      const std::string_view key = path.substr(0, dot);
      place = {place.node->child(key), join_path(place.path, key)};
      if (dot == path.size()) break;
      const std::size_t depth = way_.size();
      CHORALE_ASSIGN_OR_RETURN(place, follow(std::move(place)));
      way_.resize(depth);  // this section is reached: it is no longer on the way
      path.remove_prefix(dot + 1);
    }
    return place;
  }

  Status fail(const Place& place, std::string_view message) const {
    return Status::invalid_argument(fmt::format("{}: {}: {}", file_.place(place.node), place.path, message));
  }

  const ConfigNode::File& file_;
  std::vector<std::string> way_;
  int steps_ = 0;
};

ConfigNode::ConfigNode(std::shared_ptr<const File> file, YamlNode* origin, std::string path)
    : file_(std::move(file)), origin_(origin), path_(std::move(path)) {
  auto place = ReferenceWalk(*file_).follow({origin_, path_});
  if (!place) {
    problem_ = place.status();
    return;
  }
  if (place->node != nullptr && place->node->kind != YamlNode::Kind::null) value_ = place->node;
  value_path_ = std::move(place->path);
}

ConfigNode::ConfigNode(std::shared_ptr<const File> file, std::string path, Status problem)
    : file_(std::move(file)), path_(std::move(path)), problem_(std::move(problem)) {}

std::string ConfigNode::source() const {
  const std::string_view from = value_path_ == path_ ? "" : ", from ";
  return fmt::format("{} ({}{}{})", file_->place(origin_), path_, from, from.empty() ? "" : value_path_);
}

Status ConfigNode::error(std::string_view message) const {
  const std::string place = file_->place(origin_ != nullptr ? origin_ : around_);
  if (path_.empty()) return Status::invalid_argument(fmt::format("{}: {}", place, message));
  return Status::invalid_argument(fmt::format("{}: {}: {}", place, path_, message));
}

Status ConfigNode::expect(YamlNode::Kind kind) const {
  CHORALE_RETURN_IF_ERROR(problem_);
  if (value_ == nullptr || value_->kind == kind) return {};
  return error(fmt::format("must be {}, not {}", name(kind), show(*value_)));
}

ConfigNode ConfigNode::operator[](std::string_view key) const {
  const std::string path = join_path(path_, key);
  if (Status status = expect(YamlNode::Kind::map); !status.is_ok())
    return ConfigNode(file_, path, std::move(status));
  if (value_ != nullptr) value_->asked.emplace(key);
  ConfigNode child(file_, value_ != nullptr ? value_->child(key) : nullptr, path);
  child.around_ = value_ != nullptr ? value_ : around_;
  return child;
}

Result<std::vector<ConfigNode>> ConfigNode::children(YamlNode::Kind kind) const {
  CHORALE_RETURN_IF_ERROR(expect(kind));
  std::vector<ConfigNode> nodes;
  if (value_ == nullptr) return nodes;
  nodes.reserve(value_->children.size());
  for (const auto& child : value_->children) {
    const bool in_list = kind == YamlNode::Kind::list;
    if (!in_list) value_->asked.insert(child->key);
    nodes.push_back(
        ConfigNode(file_, child.get(),
                   in_list ? fmt::format("{}[{}]", path_, nodes.size()) : join_path(path_, child->key)));
    CHORALE_RETURN_IF_ERROR(nodes.back().problem_);
  }
  return nodes;
}

Result<std::vector<ConfigNode>> ConfigNode::items() const { return children(YamlNode::Kind::list); }
Result<std::vector<ConfigNode>> ConfigNode::entries() const { return children(YamlNode::Kind::map); }

Status ConfigNode::read(std::string& value) const {
  CHORALE_RETURN_IF_ERROR(expect(YamlNode::Kind::text));
  if (value_ != nullptr) value = value_->text;
  return {};
}

Status ConfigNode::read(bool& value) const {
  CHORALE_RETURN_IF_ERROR(problem_);
  if (value_ == nullptr) return {};
  const auto is_one_of = [&](auto... words) { return ((value_->text == words) || ...); };
  const bool plain = value_->kind == YamlNode::Kind::text && !value_->quoted;
  const bool yes = plain && is_one_of("true", "True", "TRUE");
  if (!yes && !(plain && is_one_of("false", "False", "FALSE")))
    return error(fmt::format("must be true or false, not {}", show(*value_)));
  value = yes;
  return {};
}

Status ConfigNode::read_integer(std::int64_t& value, std::int64_t least, std::int64_t most) const {
  CHORALE_RETURN_IF_ERROR(problem_);
  const bool plain = value_->kind == YamlNode::Kind::text && !value_->quoted;
  const auto number = plain ? parse_number<std::int64_t>(value_->text) : std::nullopt;
  if (!number) return error(fmt::format("must be a whole number, not {}", show(*value_)));
  if (*number < least || *number > most)
    return error(fmt::format("is {}: must be from {} to {}", *number, least, most));
  value = *number;
  return {};
}

Status ConfigNode::read_number(double& value, double least, double most) const {
  CHORALE_RETURN_IF_ERROR(problem_);
  const bool plain = value_->kind == YamlNode::Kind::text && !value_->quoted;
  const auto number = plain ? parse_number<double>(value_->text) : std::nullopt;
  if (!number || !std::isfinite(*number))
    return error(fmt::format("must be a number, not {}", show(*value_)));
  if (*number < least || *number > most)
    return error(fmt::format("is {}: must be from {} to {}", *number, least, most));
  value = *number;
  return {};
}

Status ConfigNode::read_choice(std::string& value, std::span<const std::string_view> choices) const {
  std::string text;
  CHORALE_RETURN_IF_ERROR(read(text));
  if (value_ == nullptr) return {};
  if (std::find(choices.begin(), choices.end(), text) == choices.end())
    return error(fmt::format("{} is not known {}", show(*value_), suggest_name(text, choices)));
  value = text;
  return {};
}

Status ConfigNode::required() const {
  CHORALE_RETURN_IF_ERROR(problem_);
  return value_ != nullptr ? Status::ok() : error("is required and not given");
}

void ConfigNode::allow_other_keys() const {
  if (is_section()) value_->open = true;
}

namespace {

// Puts the value of "section.key=value" into the tree, in the place of what the file says.
Status set_override(YamlNode& root, std::string_view text) {
  const auto fail = [&](std::string_view message) {
    return Status::invalid_argument(fmt::format("command line: '{}': {}", text, message));
  };
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos) return fail("must have the form section.key=value");
  std::string_view path = text.substr(0, equals);
  path.remove_prefix(std::min(path.find_first_not_of('+'), path.size()));

  auto value = parse_yaml(text.substr(equals + 1), "command line");
  if (!value) return value.status();
  const auto all_from_command_line = [](YamlNode& node, const auto& self) -> void {
    node.line = 0;
    for (const auto& child : node.children) self(*child, self);
  };
  all_from_command_line(**value, all_from_command_line);

  YamlNode* node = &root;
  for (int depth = 0;; ++depth) {
    const std::size_t dot = std::min(path.find('.'), path.size());
    const std::string_view key = path.substr(0, dot);
    if (key.empty()) return fail("a part of the key is empty");
    if (depth == max_yaml_depth) return fail(fmt::format("nested deeper than {} levels", max_yaml_depth));
    if (node->kind == YamlNode::Kind::null) node->kind = YamlNode::Kind::map;
    if (node->kind != YamlNode::Kind::map)
      return fail(fmt::format("{} is {}, which has no key '{}'", node->key, name(node->kind), key));

    YamlNode* child = node->child(key);
    if (child == nullptr) {
      node->children.push_back(std::make_unique<YamlNode>());
      child = node->children.back().get();
      child->key = key;
    }
    if (dot == path.size()) {
      (*value)->key = key;
      *child = std::move(**value);
      return {};
    }
    node = child;
    path.remove_prefix(dot + 1);
  }
}

Status reject_unknown_below(const YamlNode& node, const std::string& path, const auto& place) {
  const std::vector<std::string_view> asked(node.asked.begin(), node.asked.end());
  for (std::size_t i = 0; i < node.children.size(); ++i) {
    const YamlNode& child = *node.children[i];
    const bool is_item = node.kind == YamlNode::Kind::list;
    const std::string child_path = is_item ? fmt::format("{}[{}]", path, i) : join_path(path, child.key);
    if (!is_item && !node.asked.contains(child.key)) {
      if (node.open && nearest_name(child.key, asked).empty()) continue;
      return Status::invalid_argument(
          fmt::format("{}: {}: unknown key {}", place(&child), child_path, suggest_name(child.key, asked)));
    }
    CHORALE_RETURN_IF_ERROR(reject_unknown_below(child, child_path, place));
  }
  return {};
}

}  // namespace

Result<Config> Config::load(const std::string& path, const std::vector<std::string>& overrides) {
  CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(path, max_yaml_bytes));
  return parse(text, path, overrides);
}

Result<Config> Config::parse(std::string_view yaml, std::string_view file_name,
                             const std::vector<std::string>& overrides) {
  CHORALE_ASSIGN_OR_RETURN(auto root, parse_yaml(yaml, file_name));
  if (root->kind == YamlNode::Kind::null)
    return Status::invalid_argument(fmt::format("{}: is empty: a configuration has sections", file_name));
  if (root->kind != YamlNode::Kind::map)
    return Status::invalid_argument(
        fmt::format("{}:{}: must be sections (key: value), not {}", file_name, root->line, show(*root)));
  for (const std::string& text : overrides) CHORALE_RETURN_IF_ERROR(set_override(*root, text));

  auto file = std::make_shared<ConfigNode::File>();
  file->name = file_name;
  file->root = std::move(root);
  return Config(std::move(file));
}

ConfigNode Config::root() const { return ConfigNode(file_, file_->root.get(), ""); }

Status Config::reject_unknown() const {
  return reject_unknown_below(*file_->root, "", [&](const YamlNode* node) { return file_->place(node); });
}

namespace {

// Edits (insert, delete, replace, swap two neighbours) that turn x into y.
std::size_t edit_distance(std::string_view x, std::string_view y) {
  std::vector<std::vector<std::size_t>> edits(x.size() + 1, std::vector<std::size_t>(y.size() + 1));
  for (std::size_t i = 0; i <= x.size(); ++i) {
    for (std::size_t j = 0; j <= y.size(); ++j) {
      if (i == 0 || j == 0) {
        edits[i][j] = i + j;
        continue;
      }
      const std::size_t replaced = edits[i - 1][j - 1] + (x[i - 1] == y[j - 1] ? 0 : 1);
      edits[i][j] = std::min({edits[i - 1][j] + 1, edits[i][j - 1] + 1, replaced});
      const bool swapped = i > 1 && j > 1 && x[i - 1] == y[j - 2] && x[i - 2] == y[j - 1];
      if (swapped) edits[i][j] = std::min(edits[i][j], edits[i - 2][j - 2] + 1);
    }
  }
  return edits[x.size()][y.size()];
}

}  // namespace

std::string_view nearest_name(std::string_view name, std::span<const std::string_view> known) {
  constexpr std::size_t longest = 100;  // nobody means a known name by more than that
  std::string_view nearest;
  std::size_t least = std::string_view::npos;
  if (name.size() > longest) return nearest;
  for (const std::string_view candidate : known) {
    const std::size_t edits = edit_distance(name, candidate);
    if (edits < least && edits <= candidate.size() / 3) {
      nearest = candidate;
      least = edits;
    }
  }
  return nearest;
}

std::string suggest_name(std::string_view name, std::span<const std::string_view> known) {
  const std::string_view nearest = nearest_name(name, known);
  if (!nearest.empty()) return fmt::format("(did you mean {}?)", nearest);
  return fmt::format("(known here: {})", fmt::join(known, ", "));
}

}  // namespace chorale
