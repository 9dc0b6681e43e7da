// The words of the text form, and errors that point into it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "chorale/status.h"

namespace chorale::programs {

struct Token {
  enum class Kind { end, name, integer, floating, symbol };
  Kind kind = Kind::end;
  std::size_t offset = 0;      // of its first byte
  std::size_t end = 0;         // behind its last
  std::string_view text = {};  // "and", "<=", "4096", ...; `&&`, `||` and `!` read as "and", "or" and "not"
  double floating = 0;         // value of a floating token
};

// The last token is `end`. The text must outlive the tokens.
Result<std::vector<Token>> tokenize(std::string_view text);

// "column 7: <message>", then the line of the text (shortened if long), then a caret under the place.
Status error_at(std::string_view text, std::size_t offset, std::string_view message);

}  // namespace chorale::programs
