#include "roles/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <sstream>

namespace chorale {
namespace {

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
    if (expects_key()) return take_key(mark, value);
    if (YamlNode* node = add(mark, YamlNode::Kind::text)) {
      node->text = value;
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
