// A program as text that parses to the same program.
#include <fmt/format.h>

#include <cmath>

#include "mask/expr.h"
#include "mask/table.h"

namespace chorale {
namespace programs {
namespace {

// How tightly an operation binds as text; the parser's order.
int binding(Op op) {
  switch (op) {
    case Op::logical_or:
      return 1;
    case Op::logical_and:
      return 2;
    case Op::logical_not:
      return 3;
    case Op::less:
    case Op::less_equal:
    case Op::equal:
    case Op::not_equal:
      return 4;
    case Op::add:
    case Op::subtract:
      return 5;
    case Op::multiply:
    case Op::divide:
    case Op::modulo:
      return 6;
    case Op::negate:
      return 7;
    default:
      return 8;
  }
}
bool is_infix(Op op) { return binding(op) <= 6 && op != Op::logical_not; }

// Text of a value, with what decides whether it needs parentheses or a name of its own.
struct Piece {
  std::string text = {};
  int binds = 8;
  int size = 1;     // operations and operands written out
  int nesting = 0;  // how deep the parser must recurse
};

class Printer {
 public:
  explicit Printer(const Program& program)
      : program_(program),
        is_mask_(program.result().type == Type::boolean),
        uses_(program.instructions().size(), 0) {
    for (const Program::Instruction& instruction : program.instructions())
      for (int j = 0; j < arity(instruction.op); ++j)
        ++uses_[static_cast<std::size_t>(instruction.operands[j])];
    for (std::size_t i = 0; i < uses_.size(); ++i)
      pieces_.push_back(name_if_needed(i, piece(program.instructions()[i])));
  }

  const std::string& text(std::size_t instruction) const { return pieces_[instruction].text; }
  const std::string& definitions() const { return definitions_; }

 private:
  // Larger values that are used again get a name, so that the text stays as short as the program; deep ones
  // too, so that it can be parsed.
  static constexpr int inline_size = 8, inline_nesting = 100;
  Piece name_if_needed(std::size_t i, Piece piece) {
    const bool shared = uses_[i] > 1 && piece.size > inline_size;
    if (uses_[i] == 0 || (!shared && piece.nesting < inline_nesting)) return piece;
    const std::string name = fmt::format("t{}", ++names_);
    definitions_ += fmt::format("let {} = {}; ", name, piece.text);
    return {.text = name};
  }

  Piece piece(const Program::Instruction& instruction) {
    if (arity(instruction.op) == 0) return leaf(instruction);
    Piece result{.binds = binding(instruction.op)};
    if (is_infix(instruction.op)) {
      // Chains lean to the left; comparisons do not chain at all.
      const bool chains = binding(instruction.op) != binding(Op::less);
      add(result, instruction.operands[0], chains ? result.binds : result.binds + 1, 0);
      result.text += fmt::format(" {} ", symbol(instruction.op));
      add(result, instruction.operands[1], result.binds + 1, 1);
      return result;
    }
    if (instruction.op == Op::negate || instruction.op == Op::logical_not) {
      result.text = instruction.op == Op::negate ? "-" : "not ";
      add(result, instruction.operands[0], result.binds, 1);
      return result;
    }
    const bool table = is_table(instruction.op);
    result.text = fmt::format("{}{}",
                              table ? program_.tables()[static_cast<std::size_t>(instruction.integer)].name()
                                    : symbol(instruction.op),
                              table ? '[' : '(');
    for (int j = 0; j < arity(instruction.op); ++j) {
      if (j > 0) result.text += ", ";
      add(result, instruction.operands[j], 0, 1);
    }
    result.text += table ? ']' : ')';
    return result;
  }

  // Appends an operand, in parentheses unless it binds at least as tightly as `needed`.
  void add(Piece& result, std::int32_t operand, int needed, int nesting) {
    Piece& piece = pieces_[static_cast<std::size_t>(operand)];
    const bool parentheses = piece.binds < needed;
    result.size += piece.size;
    result.nesting = std::max(result.nesting, piece.nesting + (parentheses ? nesting + 1 : nesting));
    if (parentheses) {
      result.text += '(' + piece.text + ')';
    } else if (result.text.empty() && uses_[static_cast<std::size_t>(operand)] == 1) {
      result.text = std::move(piece.text);  // a long chain is not copied at every link
    } else {
      result.text += piece.text;
    }
  }

  Piece leaf(const Program::Instruction& instruction) const {
    switch (instruction.op) {
      case Op::constant_bool:
        return {.text = instruction.integer != 0 ? "true" : "false"};
      case Op::constant_int:
        return {.text = fmt::format("{}", instruction.integer), .binds = instruction.integer < 0 ? 7 : 8};
      case Op::constant_float:
        return {.text = float_text(instruction.floating),
                .binds = std::signbit(instruction.floating) ? 7 : 8};
      default:
        return {.text = std::string(symbol(instruction.op))};
    }
  }
  // The shortest text that reads back as the same float: of 32 bits in a mask, of 64 in a score.
  std::string float_text(double value) const {
    std::string text = is_mask_ ? fmt::format("{}", static_cast<float>(value)) : fmt::format("{}", value);
    if (text.find_first_of(".ei") == std::string::npos) text += ".0";
    return text;
  }

  const Program& program_;
  bool is_mask_;
  std::vector<int> uses_;
  std::vector<Piece> pieces_;
  std::string definitions_;
  int names_ = 0;
};

}  // namespace

}  // namespace programs

std::string Program::to_string() const {
  const programs::Printer printer(*this);
  return printer.definitions() + printer.text(instructions_.size() - 1);
}

}  // namespace chorale
