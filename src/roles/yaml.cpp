#include "roles/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cstdint>
#include <sstream>

namespace chorale {
namespace {

// How many bytes of `text` are UTF-8 from its start: yaml-cpp would let others through, into JSON that may
// not hold them.
std::size_t valid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t at) {
      return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u;
    };
    const unsigned lead = byte(i);
    const std::size_t length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    std::uint32_t point = length == 1 ? lead : lead & (0x7fu >> length);
    bool valid = lead < 0x80 || (lead >= 0xc2 && lead <= 0xf4);
    for (std::size_t part = 1; part < length; ++part) {
      valid = valid && (byte(i + part) & 0xc0) == 0x80;
      point = point << 6 | (byte(i + part) & 0x3f);
    }
    constexpr std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};  // by length; below, a shorter form exists
    if (!valid || point < least[length - 1] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
      return i;
    i += length;
  }
  return text.size();
}

// What escapes mean, in UTF-8: yaml-cpp hands out `\N` and `\_`, U+0085 and U+00A0, as one byte each (its
// issue 803).
std::string in_utf8(std::string_view scalar) {
  std::string text;
  for (;;) {
    const std::size_t valid = valid_utf8(scalar);
    text += scalar.substr(0, valid);
    if (valid == scalar.size()) return text;
    text += {'\xc2', scalar[valid]};
    scalar.remove_prefix(valid + 1);
  }
}

// Builds the tree from yaml-cpp's events. The first thing wrong is kept and everything after it ignored.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string_view file_name) : file_name_(file_name) {}

  const Status& status() const { return status_; }
  std::unique_ptr<YamlNode> take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (root_) fail(mark, "a second document starts here: a configuration is one document");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { add(mark, YamlNode::Kind::null); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(mark, "aliases (*name) are not supported: refer to a key with ${section.key}");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    check_tag(mark, tag);
    if (!status_.is_ok()) return;
    if (expects_key()) return take_key(mark, in_utf8(value));
    if (YamlNode* node = add(mark, YamlNode::Kind::text)) {
      node->text = in_utf8(value);
      node->quoted = tag == "!";
    }
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, YamlNode::Kind::list);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, YamlNode::Kind::map);
  }
  void OnMapEnd() override { close(); }

  void fail(const YAML::Mark& mark, std::string_view message) {
    if (!status_.is_ok()) return;
    status_ = Status::invalid_argument(mark.is_null()
                                           ? fmt::format("{}: {}", file_name_, message)
                                           : fmt::format("{}:{}: {}", file_name_, mark.line + 1, message));
  }

 private:
  // yaml-cpp says "?" for a plain scalar and "!" for a quoted one.
  void check_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!")
      fail(mark, fmt::format("tags such as '{}' are not supported", tag));
  }

  bool expects_key() const {
    return !open_.empty() && open_.back()->kind == YamlNode::Kind::map && !has_key_;
  }

  void take_key(const YAML::Mark& mark, const std::string& key) {
    if (const YamlNode* first = open_.back()->child(key))
      return fail(mark, fmt::format("key '{}' is given twice, first in line {}", key, first->line));
    key_ = key;
    key_line_ = mark.line + 1;
    has_key_ = true;
  }

  YamlNode* add(const YAML::Mark& mark, YamlNode::Kind kind) {
    if (!status_.is_ok()) return nullptr;
    if (expects_key()) {
      fail(mark, fmt::format("a key must be text, not {}", name(kind)));
      return nullptr;
    }
    auto node = std::make_unique<YamlNode>();
    node->kind = kind;
    node->line = mark.line + 1;
    if (has_key_) {
      node->key = std::move(key_);
      node->line = key_line_;
      has_key_ = false;
    }
    YamlNode* added = node.get();
    if (open_.empty())
      root_ = std::move(node);
    else
      open_.back()->children.push_back(std::move(node));
    return added;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YamlNode::Kind kind) {
    check_tag(mark, tag);
    if (open_.size() == max_yaml_depth)
      fail(mark, fmt::format("nested deeper than {} levels", max_yaml_depth));
    if (YamlNode* node = add(mark, kind)) open_.push_back(node);
  }

  void close() {
    if (status_.is_ok()) open_.pop_back();
  }

  std::string file_name_;
  Status status_;
  std::unique_ptr<YamlNode> root_;
  std::vector<YamlNode*> open_;  // the lists and maps around the current place
  std::string key_;              // read, waiting for its value
  int key_line_ = 0;
  bool has_key_ = false;
};

}  // namespace

std::string_view name(YamlNode::Kind kind) {
  switch (kind) {
    case YamlNode::Kind::null:
      return "nothing";
    case YamlNode::Kind::text:
      return "text";
    case YamlNode::Kind::list:
      return "a list";
    case YamlNode::Kind::map:
      return "a section";
  }
  return "";
}

YamlNode* YamlNode::child(std::string_view wanted) const {
  if (kind != Kind::map) return nullptr;
  for (const auto& node : children)
    if (node->key == wanted) return node.get();
  return nullptr;
}

Result<std::unique_ptr<YamlNode>> parse_yaml(std::string_view text, std::string_view file_name) {
  if (text.size() > max_yaml_bytes)
    return Status::invalid_argument(fmt::format("{}: is {} bytes: a configuration has at most {}", file_name,
                                                text.size(), max_yaml_bytes));
  // yaml-cpp takes the end of the file for a closing quote where a line break comes before it.
  text = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
  if (const std::size_t valid = valid_utf8(text); valid != text.size())
    return Status::invalid_argument(
        fmt::format("{}:{}: is not UTF-8 text", file_name,
                    1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(valid), '\n')));
  TreeBuilder builder(file_name);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (builder.status().is_ok() && parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    builder.fail(error.mark, error.msg);
  }
  CHORALE_RETURN_IF_ERROR(builder.status());
  auto root = builder.take_root();
  return root ? std::move(root) : std::make_unique<YamlNode>();
}

}  // namespace chorale
