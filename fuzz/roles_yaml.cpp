// A configuration of roles, with overrides from a command line. The tree that YAML comes to is printed and
// parsed again; what loads is resolved and explained.
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "chorale/roles.h"
#include "roles/yaml.h"
#include "target.h"

namespace chorale::fuzz {
namespace {

// Any text as a double-quoted scalar of ASCII characters. yaml-cpp hands out UTF-8, whatever it was given.
std::string scalar(std::string_view text) {
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const int length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    std::uint32_t point = length == 1 ? lead : lead & (0x7fu >> length);
    for (int part = 1; part < length; ++part)
      point = point << 6 | (static_cast<unsigned char>(text[i + static_cast<std::size_t>(part)]) & 0x3f);
    i += static_cast<std::size_t>(length);
    char escaped[16];
    std::snprintf(escaped, sizeof escaped, "\\U%08X", point);
    out += escaped;
  }
  return out + "\"";
}

void print(const YamlNode& node, std::string& out) {
  if (node.kind == YamlNode::Kind::null) out += "~";
  if (node.kind == YamlNode::Kind::text) out += scalar(node.text);
  if (node.kind != YamlNode::Kind::list && node.kind != YamlNode::Kind::map) return;
  const bool is_map = node.kind == YamlNode::Kind::map;
  out += is_map ? "{" : "[";
  for (const auto& child : node.children) {
    if (&child != &node.children.front()) out += ", ";
    if (is_map) out += "? " + scalar(child->key) + " : ";
    print(*child, out);
  }
  out += is_map ? "}" : "]";
}

void expect_same(const YamlNode& x, const YamlNode& y) {
  ASSERT_EQ(x.kind, y.kind);
  ASSERT_EQ(x.key, y.key);
  ASSERT_EQ(x.text, y.text);
  ASSERT_EQ(x.children.size(), y.children.size());
  for (std::size_t i = 0; i < x.children.size(); ++i) expect_same(*x.children[i], *y.children[i]);
}

void check_tree(std::string_view text) {
  const auto tree = parse_yaml(text, "fuzz.yaml");
  if (!tree) {
    ASSERT_TRUE(tree.status().message().starts_with("fuzz.yaml:")) << tree.status().message();
    return;
  }
  std::string printed;
  print(**tree, printed);
  if (printed.size() > max_yaml_bytes) return;
  const auto again = parse_yaml(printed, "again");
  ASSERT_TRUE(again) << again.status().message() << "\n" << printed;
  expect_same(**tree, **again);
}

// The text up to the first zero byte, then overrides, each up to the next.
std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> parts;
  for (std::size_t end = 0; end != std::string_view::npos; text.remove_prefix(end + 1)) {
    end = text.find('\0');
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
  }
  return parts;
}

void check_resolved(const Roles& roles) {
  const auto own = roles.problem();
  ASSERT_TRUE(own || !own.status().message().empty());
  const Problem small{.query_heads = 4, .kv_heads = 2, .head_dim = 16, .mask = mask::causal()};
  const int layers = own && roles.layers() <= 64 ? roles.layers() : 3;
  const auto resolved = roles.resolve_all(own ? *own : small, Device::cpu(1), layers);
  if (!resolved) {
    ASSERT_FALSE(resolved.status().message().empty());
    return;
  }
  ASSERT_FALSE(resolved->explain().empty());
  ASSERT_TRUE(nlohmann::json::accept(resolved->to_json())) << resolved->to_json();
  ASSERT_EQ(resolved->check().is_ok(), resolved->parity.agree || resolved->parity.requested == Parity::off);
  for (const auto& [role, resolutions] : resolved->roles)
    for (const Resolution& resolution : resolutions) {
      ASSERT_NE(resolution.chosen, nullptr);
      ASSERT_EQ(resolution.implementation, resolution.chosen->name());
      ASSERT_TRUE(
          resolution.chosen->supports(resolution.problem, resolution.device, resolution.phase).is_ok());
      if (resolution.requested == "auto") continue;
      const ImplementationName* name = find_implementation_name(resolution.requested);
      ASSERT_NE(name, nullptr) << resolution.requested;
      ASSERT_NE(std::ranges::find(name->servants, resolution.chosen), name->servants.end())
          << resolution.explain();
    }
}

}  // namespace

void run(std::span<const std::uint8_t> input) {
  unsetenv("CHORALE_ATTN_IMPLEMENTATION");
  unsetenv("VERL_ATTN_IMPLEMENTATION");
  const std::vector<std::string> parts = split(text_of(input));
  check_tree(parts.front());
  const std::vector<std::string> overrides(parts.begin() + 1, parts.end());
  const auto roles = Roles::parse(parts.front(), "fuzz.yaml", overrides);
  if (roles) return check_resolved(*roles);
  ASSERT_FALSE(roles.status().message().empty());
  if (overrides.empty())
    ASSERT_TRUE(roles.status().message().starts_with("fuzz.yaml:")) << roles.status().message();
}

}  // namespace chorale::fuzz
