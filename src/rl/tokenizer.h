// Tokenizer: one token per character, and tokens with names such as "<end>".
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/status.h"

namespace chorale {

// Immutable. Saved beside a model as chorale_tokenizer.json: {"tokens": ["0", "1", ..., "<end>"]}, one text
// per token number.
class Tokenizer {
 public:
  // Texts must be distinct and not empty.
  static Result<Tokenizer> create(std::vector<std::string> tokens);
  static Result<Tokenizer> load(const std::string& folder);
  Status save(const std::string& folder) const;

  std::int32_t size() const { return static_cast<std::int32_t>(tokens_.size()); }
  // At each place the longest token that fits. Text that no token begins is an error that names the place.
  Result<std::vector<std::int32_t>> encode(std::string_view text) const;
  // Numbers outside the vocabulary are shown as "<?>".
  std::string decode(std::span<const std::int32_t> tokens) const;

 private:
  explicit Tokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}
  std::vector<std::string> tokens_;
};

}  // namespace chorale
