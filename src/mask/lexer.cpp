#include "mask/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace chorale::programs {
namespace {

constexpr std::size_t max_text = 1 << 20;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}  // of a UTF-8 character

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !is_continuation(c); }));
}

// What stands there, fit for a message: one character, or its code if it cannot be shown.
std::string show(std::string_view text, std::size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  std::size_t length = 1;
  while (offset + length < text.size() && length < 4 && is_continuation(text[offset + length])) ++length;
  const bool plain = byte >= 0x20 && byte < 0x7F, lead = byte >= 0xC2 && byte < 0xF5 && length > 1;
  return plain || lead ? fmt::format("'{}'", text.substr(offset, length))
                       : fmt::format("byte 0x{:02x}", byte);
}

// Spaces in place of what would move the caret or the cursor.
std::string printable(std::string_view text) {
  std::string line(text);
  for (char& c : line)
    if ((static_cast<unsigned char>(c) < 0x20 || c == 0x7F)) c = ' ';
  return line;
}

// The longer of two that start alike comes first. Some are not ours, but people bring them from Python and C.
struct Symbol {
  std::string_view written, means, advice = "";
};
constexpr std::array symbols{
    Symbol{"&&", "and"},
    Symbol{"||", "or"},
    Symbol{"<=", "<="},
    Symbol{">=", ">="},
    Symbol{"==", "=="},
    Symbol{"!=", "!="},
    Symbol{"//", "", "'/' between integers rounds down"},
    Symbol{"**", "", "write x * x"},
    Symbol{"!", "not"},
    Symbol{"<", "<"},
    Symbol{">", ">"},
    Symbol{"+", "+"},
    Symbol{"-", "-"},
    Symbol{"*", "*"},
    Symbol{"/", "/"},
    Symbol{"%", "%"},
    Symbol{"(", "("},
    Symbol{")", ")"},
    Symbol{"[", "["},
    Symbol{"]", "]"},
    Symbol{",", ","},
    Symbol{";", ";"},
    Symbol{"=", "="},
    Symbol{"&", "", "write 'and'"},
    Symbol{"|", "", "write 'or'"},
    Symbol{"~", "", "write 'not'"},
    Symbol{"?", "", "write select(condition, x, y)"},
};

std::size_t digits_end(std::string_view text, std::size_t at) {
  while (at < text.size() && is_digit(text[at])) ++at;
  return at;
}

Result<Token> number(std::string_view text, std::size_t start) {
  Token token{.kind = Token::Kind::integer, .offset = start};
  std::size_t end = digits_end(text, start);
  if (end < text.size() && text[end] == '.') {
    token.kind = Token::Kind::floating;
    end = digits_end(text, end + 1);
  }
  if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    std::size_t exponent = end + 1;
    if (exponent < text.size() && (text[exponent] == '+' || text[exponent] == '-')) ++exponent;
    if (exponent < text.size() && is_digit(text[exponent])) {
      token.kind = Token::Kind::floating;
      end = digits_end(text, exponent);
    }
  }
  if (end < text.size() && (is_letter(text[end]) || text[end] == '.'))
    return error_at(text, end, fmt::format("{} cannot follow a number", show(text, end)));
  token.end = end;
  token.text = text.substr(start, end - start);
  if (token.kind == Token::Kind::floating) {
    const auto [rest, error] =
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), token.floating);
    if (error != std::errc() || rest != token.text.data() + token.text.size())
      return error_at(text, start, "the number is beyond the range of a float");
  }
  return token;
}

Result<Token> symbol(std::string_view text, std::size_t start) {
  const std::string_view rest = text.substr(start);
  for (const Symbol& candidate : symbols)
    if (rest.starts_with(candidate.written)) {
      if (candidate.advice.empty())
        return Token{.kind = Token::Kind::symbol,
                     .offset = start,
                     .end = start + candidate.written.size(),
                     .text = candidate.means};
      return error_at(text, start,
                      fmt::format("'{}' is no operator here: {}", candidate.written, candidate.advice));
    }
  return error_at(text, start, fmt::format("{} means nothing here", show(text, start)));
}

}  // namespace

Result<std::vector<Token>> tokenize(std::string_view text) {
  if (text.size() > max_text)
    return Status::invalid_argument(
        fmt::format("the text has {} bytes: at most {} are read", text.size(), max_text));
  std::vector<Token> tokens;
  std::size_t at = 0;
  while (true) {
    while (at < text.size() && is_space(text[at])) ++at;
    if (at == text.size()) break;
    if (is_letter(text[at])) {
      std::size_t end = at;
      while (end < text.size() && (is_letter(text[end]) || is_digit(text[end]))) ++end;
      tokens.push_back(
          {.kind = Token::Kind::name, .offset = at, .end = end, .text = text.substr(at, end - at)});
      at = end;
    } else if (is_digit(text[at]) || (text[at] == '.' && at + 1 < text.size() && is_digit(text[at + 1]))) {
      CHORALE_ASSIGN_OR_RETURN(tokens.emplace_back(), number(text, at));
      at = tokens.back().end;
    } else {
      CHORALE_ASSIGN_OR_RETURN(tokens.emplace_back(), symbol(text, at));
      at = tokens.back().end;
    }
  }
  tokens.push_back({.offset = text.size(), .end = text.size()});
  return tokens;
}

Status error_at(std::string_view text, std::size_t offset, std::string_view message) {
  constexpr std::size_t before = 50, after = 30;  // bytes of a long text that are repeated around the place
  std::size_t first = offset > before ? offset - before : 0, last = std::min(text.size(), offset + after);
  while (first > 0 && is_continuation(text[first])) --first;
  while (last < text.size() && is_continuation(text[last])) ++last;
  const std::string_view lead = first > 0 ? "..." : "", trail = last < text.size() ? "..." : "";
  const std::size_t indent = lead.size() + characters(text.substr(first, offset - first));
  return Status::invalid_argument(
      fmt::format("column {}: {}\n  {}{}{}\n  {:>{}}", characters(text.substr(0, offset)) + 1, message, lead,
                  printable(text.substr(first, last - first)), trail, "^", indent + 1));
}

}  // namespace chorale::programs
