// A YAML document as a tree that remembers its lines.
//
// yaml-cpp does the scanning; this keeps what its own tree forgets (where each key stands, keys given twice)
// and refuses what a configuration has no use for: aliases, tags, several documents, deep nesting.
#pragma once

#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/status.h"

namespace chorale {

struct YamlNode {
  enum class Kind { null, text, list, map };

  Kind kind = Kind::null;
  int line = 0;         // from 1, of the key where there is one; 0: the command line
  std::string key;      // under which its map holds it
  std::string text;     // of Kind::text
  bool quoted = false;  // "5" is text, 5 may be a number
  std::vector<std::unique_ptr<YamlNode>> children;  // of a list or a map, in the order of the file

  // Which keys of this map somebody asked for, there or not; and whether the others are another reader's
  // business. Config::reject_unknown compares them with what the file holds.
  std::set<std::string, std::less<>> asked;
  bool open = false;

  YamlNode* child(std::string_view name) const;  // of a map; nullptr if it has none of that name
};
std::string_view name(YamlNode::Kind kind);  // "text", "a list", ...

inline constexpr std::size_t max_yaml_bytes = std::size_t{1} << 20;
inline constexpr int max_yaml_depth = 32;

// The only document in `text`; an empty one is Kind::null. Errors start with "file_name:line: ".
Result<std::unique_ptr<YamlNode>> parse_yaml(std::string_view text, std::string_view file_name);

}  // namespace chorale
