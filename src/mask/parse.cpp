#include "mask/parse.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "mask/lexer.h"

namespace chorale::programs {
namespace {

// How tightly operators bind, loosest first; `not` and unary minus have their places among them.
enum Precedence { lowest, disjunction, conjunction, negation, comparison, sum, product, sign };

struct Operator {
  std::string_view name;
  Precedence precedence;
  Expr (*make)(Expr x, Expr y);
};
constexpr std::array operators{Operator{
    "or", disjunction, operator|| },
    Operator{
        "and", conjunction, operator&& },
        Operator{
            "<", comparison, operator<},
            Operator{
                "<=", comparison, operator<= },
                Operator{
                    ">", comparison, operator> },
                    Operator{">=", comparison, operator>= },
                             Operator{"==", comparison, operator== },
                                      Operator{"!=", comparison, operator!= },
                                               Operator{"+", sum, operator+ },
                                                        Operator{"-", sum, operator- },
                                                                 Operator{"*", product, operator* },
                                                                          Operator{"/", product, operator/ },
                                                                                   Operator{
                                                                                       "%",
                                                                                       product,
                                                                                       operator% },
                                                                          };

using Arguments = std::span<const Expr>;

struct Function {
  std::string_view name;
  std::size_t least, most;  // how many arguments
  enum class Takes { anything, integers, a_score } takes;
  Expr (*make)(Arguments arguments, const Expr& score);
};
constexpr auto anything = Function::Takes::anything, integers = Function::Takes::integers,
               a_score = Function::Takes::a_score;
constexpr std::array functions{
    Function{"min", 2, 2, anything, [](Arguments x, const Expr&) { return expr::min(x[0], x[1]); }},
    Function{"max", 2, 2, anything, [](Arguments x, const Expr&) { return expr::max(x[0], x[1]); }},
    Function{"abs", 1, 1, anything, [](Arguments x, const Expr&) { return expr::abs(x[0]); }},
    Function{"select", 3, 3, anything,
             [](Arguments x, const Expr&) { return expr::select(x[0], x[1], x[2]); }},
    Function{"float", 1, 1, anything, [](Arguments x, const Expr&) { return expr::to_float(x[0]); }},
    Function{"tanh", 1, 1, anything, [](Arguments x, const Expr&) { return expr::tanh(x[0]); }},
    Function{"exp", 1, 1, anything, [](Arguments x, const Expr&) { return expr::exp(x[0]); }},
    Function{"log", 1, 1, anything, [](Arguments x, const Expr&) { return expr::log(x[0]); }},
    Function{"sqrt", 1, 1, anything, [](Arguments x, const Expr&) { return expr::sqrt(x[0]); }},
    Function{"all", 0, 0, anything, [](Arguments, const Expr&) { return Expr(true); }},
    Function{"causal", 0, 0, anything, [](Arguments, const Expr&) { return causal(); }},
    Function{"window", 1, 2, integers,
             [](Arguments x, const Expr&) { return x.size() == 1 ? window(x[0]) : window(x[0], x[1]); }},
    Function{"prefix_lm", 1, 1, integers, [](Arguments x, const Expr&) { return prefix_lm(x[0]); }},
    Function{"softcap", 1, 1, a_score, [](Arguments x, const Expr& score) { return softcap(x[0], score); }},
};
// Functions of a table's name.
struct TableFunction {
  std::string_view name;
  bool takes_score;
  Expr (*make)(const Table& table, const Expr& score);
};
constexpr std::array table_functions{
    TableFunction{"document", false, [](const Table& ids, const Expr&) { return document(ids); }},
    TableFunction{"alibi", true, alibi},
};

struct Variable {
  std::string_view name;
  Op op;
};
constexpr std::array
    variables{
        Variable{"b", Op::b},      Variable{"h", Op::h},         Variable{"q", Op::q},
        Variable{"k", Op::k},      Variable{"score", Op::score}, Variable{"q_idx", Op::q},
        Variable{"kv_idx", Op::k},  // FlexAttention's names
    };

template <class Entries>
auto find(const Entries& entries, std::string_view name) -> decltype(&entries[0]) {
  for (const auto& entry : entries)
    if (entry.name == name) return &entry;
  return nullptr;
}

// Words that cannot be names.
bool is_word(std::string_view name) {
  for (const std::string_view word : {"and", "or", "not", "let", "then"})
    if (name == word) return true;
  return false;
}

// Recursive descent with precedence climbing. Left-associative chains are loops, so only real nesting takes
// stack.
class Parser {
 public:
  Parser(std::string_view text, std::vector<Token> tokens, std::span<const Table> tables, Kind kind)
      : text_(text), tokens_(std::move(tokens)), tables_(tables), kind_(kind) {}

  // program := { let NAME = expression ; } expression { then { let ... } expression }
  Result<Expr> program() {
    Token start = peek();
    CHORALE_ASSIGN_OR_RETURN(Expr value, block());
    CHORALE_RETURN_IF_ERROR(expect_result(value, start));
    while (is(peek(), "then")) {
      CHORALE_RETURN_IF_ERROR(expect_score_program(advance()));
      score_ = to_float(value);
      start = peek();
      CHORALE_ASSIGN_OR_RETURN(value, block());
      CHORALE_RETURN_IF_ERROR(expect_result(value, start));
    }
    if (peek().kind != Token::Kind::end) return unexpected("an operator or the end");
    return value;
  }

 private:
  static constexpr int max_nesting = 256;

  Result<Expr> block() {
    while (accept("let")) {
      const Token name = peek();
      if (name.kind != Token::Kind::name || is_word(name.text) || is_taken(name.text))
        return error_at(text_, name.offset, fmt::format("'let' needs a new name, not {}", describe(name)));
      advance();
      CHORALE_RETURN_IF_ERROR(expect("="));
      CHORALE_ASSIGN_OR_RETURN(const Expr value, expression(lowest));
      CHORALE_RETURN_IF_ERROR(expect(";"));
      names_.emplace(name.text, value);
    }
    return expression(lowest);
  }

  // An expression whose operators all bind more tightly than `limit`.
  Result<Expr> expression(Precedence limit) {
    if (nesting_ == max_nesting)
      return error_at(text_, peek().offset,
                      fmt::format("nested more than {} deep: name parts with 'let'", max_nesting));
    ++nesting_;
    CHORALE_ASSIGN_OR_RETURN(Expr value, prefixed(limit));
    for (bool compared = false;;) {
      const Token operation = peek();
      const Operator* known = is_word_or_symbol(operation) ? find(operators, operation.text) : nullptr;
      if (known == nullptr || known->precedence <= limit) break;
      const Precedence level = known->precedence;
      if (level == comparison && compared)
        return error_at(text_, operation.offset, "comparisons do not chain: write 'x < y and y < z'");
      compared = level == comparison;
      advance();
      CHORALE_ASSIGN_OR_RETURN(const Expr right, expression(level));
      CHORALE_ASSIGN_OR_RETURN(value, typed(known->make(value, right), operation));
    }
    --nesting_;
    return value;
  }

  Result<Expr> prefixed(Precedence limit) {
    const Token token = peek();
    if (accept("not")) {
      if (limit > negation)
        return error_at(text_, token.offset, "'not' binds loosely: put it and its operand in parentheses");
      CHORALE_ASSIGN_OR_RETURN(const Expr x, expression(negation));
      return typed(!x, token);
    }
    if (accept("-")) {
      if (peek().kind == Token::Kind::integer)
        return integer("-");  // so that the least integer can be written
      CHORALE_ASSIGN_OR_RETURN(const Expr x, expression(sign));
      return typed(-x, token);
    }
    return primary();
  }

  Result<Expr> primary() {
    const Token token = peek();
    if (accept("(")) {
      CHORALE_ASSIGN_OR_RETURN(const Expr value, expression(lowest));
      CHORALE_RETURN_IF_ERROR(expect(")"));
      return value;
    }
    if (token.kind == Token::Kind::integer) return integer("");
    if (token.kind == Token::Kind::floating) return advance(), Expr(token.floating);
    if (token.kind == Token::Kind::name && !is_word(token.text)) return named();
    return unexpected("a value");
  }

  Result<Expr> integer(std::string_view minus) {
    const Token token = advance();
    const std::string digits = fmt::format("{}{}", minus, token.text);
    std::int64_t value = 0;
    if (std::from_chars(digits.data(), digits.data() + digits.size(), value).ec != std::errc())
      return error_at(text_, token.offset, "the number is beyond 64 bits");
    return Expr(value);
  }

  Result<Expr> named() {
    const Token name = advance();
    if (is(peek(), "[")) return table_access(name);
    if (const auto known = names_.find(name.text); known != names_.end()) return known->second;
    if (name.text == "true" || name.text == "false") return Expr(name.text == "true");
    if (name.text == "inf") return Expr(std::numeric_limits<double>::infinity());
    if (const auto* known = find(variables, name.text)) {
      if (known->op != Op::score) return variable(known->op);
      CHORALE_RETURN_IF_ERROR(expect_score_program(name));
      return score_;
    }
    if (const auto* function = find(table_functions, name.text)) return table_call(*function, name);
    if (const auto* function = find(functions, name.text)) return call(*function, name);
    if (find_table(name.text) != nullptr)
      return error_at(text_, name.offset, fmt::format("table '{0}' needs an index: {0}[k]", name.text));
    return error_at(text_, name.offset, fmt::format("'{}' is not known", name.text));
  }

  Result<Expr> table_access(const Token& name) {
    const Table* table = find_table(name.text);
    if (table == nullptr) return unknown_table(name);
    advance();
    CHORALE_ASSIGN_OR_RETURN(const std::vector<Expr> indices, list("]"));
    return typed(make_table(*table, indices), name);
  }

  Result<Expr> table_call(const TableFunction& function, const Token& name) {
    if (function.takes_score) CHORALE_RETURN_IF_ERROR(expect_score_program(name));
    CHORALE_RETURN_IF_ERROR(expect("("));
    const Token argument = advance();
    if (argument.kind != Token::Kind::name)
      return error_at(
          text_, argument.offset,
          fmt::format("'{}' needs the name of a table, not {}", function.name, describe(argument)));
    const Table* table = find_table(argument.text);
    if (table == nullptr) return unknown_table(argument);
    CHORALE_RETURN_IF_ERROR(expect(")"));
    return typed(function.make(*table, score_), argument);
  }

  Result<Expr> call(const Function& function, const Token& name) {
    if (function.takes == a_score) CHORALE_RETURN_IF_ERROR(expect_score_program(name));
    std::vector<Expr> arguments;
    if (function.least > 0 && !is(peek(), "("))
      return unexpected(fmt::format("'(' after '{}'", function.name));
    if (accept("(")) {
      CHORALE_ASSIGN_OR_RETURN(arguments, list(")"));
    }
    if (arguments.size() < function.least || arguments.size() > function.most)
      return error_at(text_, name.offset,
                      fmt::format("'{}' takes {}{} argument{}, not {}", function.name, function.least,
                                  function.least == function.most ? "" : fmt::format(" or {}", function.most),
                                  function.most == 1 ? "" : "s", arguments.size()));
    for (const Expr& argument : arguments) {
      const Type type = argument.node()->type;
      if (function.takes == integers && type != Type::integer)
        return error_at(text_, name.offset,
                        fmt::format("'{}' needs integers, not {}", function.name, programs::name(type)));
    }
    if (function.name == "window" && arguments.size() == 1)
      CHORALE_RETURN_IF_ERROR(check_window(arguments[0], name));
    return typed(function.make(arguments, score_), name);
  }

  // In text, window(0) is more likely a mistake for "no window" than a wish to see nothing.
  Status check_window(const Expr& size, const Token& name) const {
    const Expr::Node& node = *size.node();
    if (node.op != Op::constant_int || node.integer >= 1) return Status::ok();
    return error_at(text_, name.offset,
                    fmt::format("window({}) shows no key: the size must be at least 1", node.integer));
  }

  // expression { , expression } close. The opening bracket has been read.
  Result<std::vector<Expr>> list(std::string_view close) {
    std::vector<Expr> values;
    if (accept(close)) return values;
    do {
      CHORALE_ASSIGN_OR_RETURN(values.emplace_back(0), expression(lowest));
    } while (accept(","));
    CHORALE_RETURN_IF_ERROR(expect(close));
    return values;
  }

  // The expression, or its type error, told at `place`.
  Result<Expr> typed(const Expr& value, const Token& place) const {
    if (value.node()->error.is_ok()) return value;
    return error_at(text_, place.offset, value.node()->error.message());
  }
  Status expect_score_program(const Token& place) const {
    if (kind_ == Kind::score) return Status::ok();
    return error_at(text_, place.offset,
                    fmt::format("'{}' can only be used in a score program, not in a mask", place.text));
  }
  // Whether a whole expression, which starts at `place`, is what a program gives.
  Status expect_result(const Expr& value, const Token& place) const {
    const Type type = value.node()->type;
    if ((type == Type::boolean) == (kind_ == Kind::mask)) return Status::ok();
    return error_at(text_, place.offset,
                    kind_ == Kind::mask ? fmt::format("a mask must be a boolean, not {}", name(type))
                                        : "a score must be a number, not a boolean");
  }

  static bool is_word_or_symbol(const Token& token) {
    return token.kind == Token::Kind::name || token.kind == Token::Kind::symbol;
  }
  static bool is(const Token& token, std::string_view word) {
    return is_word_or_symbol(token) && token.text == word;
  }
  static std::string describe(const Token& token) {
    return token.kind == Token::Kind::end ? "the end of the text" : fmt::format("'{}'", token.text);
  }
  const Token& peek() const { return tokens_[next_]; }
  Token advance() { return tokens_[next_].kind == Token::Kind::end ? tokens_[next_] : tokens_[next_++]; }
  bool accept(std::string_view word) { return is(peek(), word) && (++next_, true); }
  Status expect(std::string_view word) {
    return accept(word) ? Status::ok() : unexpected(fmt::format("'{}'", word));
  }
  Status unexpected(std::string_view wanted) const {
    return error_at(text_, peek().offset, fmt::format("expected {}, not {}", wanted, describe(peek())));
  }

  const Table* find_table(std::string_view name) const {
    for (const Table& table : tables_)
      if (table.name() == name) return &table;
    return nullptr;
  }
  Status unknown_table(const Token& name) const {
    std::vector<std::string> names;
    for (const Table& table : tables_) names.push_back(table.name());
    return error_at(text_, name.offset,
                    names.empty() ? fmt::format("table '{}' is not known: no tables are given", name.text)
                                  : fmt::format("table '{}' is not known: the tables are {}", name.text,
                                                fmt::join(names, ", ")));
  }
  bool is_taken(std::string_view name) const {
    return find(variables, name) || find(functions, name) || find(table_functions, name) ||
           names_.contains(name) || name == "true" || name == "false" || name == "inf";
  }

  std::string_view text_;
  std::vector<Token> tokens_;
  std::span<const Table> tables_;
  Kind kind_;
  std::size_t next_ = 0;
  int nesting_ = 0;
  Expr score_ = variable(Op::score);
  std::map<std::string_view, Expr> names_;
};

}  // namespace

Result<Expr> parse(std::string_view text, std::span<const Table> tables, Kind kind) {
  CHORALE_RETURN_IF_ERROR(check_names(tables));
  CHORALE_ASSIGN_OR_RETURN(std::vector<Token> tokens, tokenize(text));
  return Parser(text, std::move(tokens), tables, kind).program();
}

Status check_names(std::span<const Table> tables) {
  std::set<std::string_view> names;
  for (const Table& table : tables)
    if (!names.insert(table.name()).second)
      return Status::invalid_argument(
          fmt::format("two tables are named '{}': names must differ", table.name()));
  return Status::ok();
}

}  // namespace chorale::programs
