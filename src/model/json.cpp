#include "model/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <unordered_set>
#include <vector>

namespace chorale {
namespace {

// Looks at every event of the text before a document is built from it, and remembers the first thing wrong.
class Checker : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    problem_ = fmt::format("key '{}' appears twice", name);
    return false;
  }
  bool parse_error(std::size_t byte, const std::string&, const nlohmann::json::exception& error) override {
    byte_ = byte;
    problem_ = sentence(error.what());
    return false;
  }

  const std::string& problem() const { return problem_; }
  std::size_t byte() const { return byte_; }  // 0 if not known

 private:
  static constexpr std::size_t deepest = 32;

  bool open() {
    keys_.emplace_back();
    if (keys_.size() <= deepest) return true;
    problem_ = fmt::format("nested more than {} levels deep", deepest);
    return false;
  }
  bool close() { return keys_.pop_back(), true; }
  // nlohmann's "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ..." without
  // its prefix.
  static std::string sentence(std::string what) {
    const std::size_t start = what.find(": ");
    return start == std::string::npos ? what : what.substr(start + 2);
  }

  std::vector<std::unordered_set<std::string>> keys_;
  std::string problem_;
  std::size_t byte_ = 0;
};

std::string place(std::string_view text, std::size_t byte) {
  const std::string_view before = text.substr(0, std::min(byte == 0 ? 0 : byte - 1, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return fmt::format("line {}, column {}", line, before.size() - line_start + 1);
}

}  // namespace

Result<nlohmann::json> parse_json(std::string_view text, std::string_view file_name) {
  Checker checker;
  if (nlohmann::json::sax_parse(text, &checker)) return nlohmann::json::parse(text);
  const std::string where = checker.byte() == 0 ? "" : fmt::format(" {}:", place(text, checker.byte()));
  return Status::corrupt_data(fmt::format("{}:{} {}", file_name, where, checker.problem()));
}

}  // namespace chorale
