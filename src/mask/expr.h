// Expr::Node: an expression under construction; and the ways between expressions and programs.
//
// Everything that makes a program makes an Expr first: the C++ operators, the text parser, the combinators,
// the derivative. make() is the one place that knows the types.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "mask/arithmetic.h"
#include "mask/program.h"

namespace chorale {

struct Expr::Node {
  Program::Op op;
  Program::Type type;
  mutable std::array<std::shared_ptr<const Node>, 3> operands;  // mutable: the destructor empties them
  std::int64_t integer = 0;                                     // constant_bool, constant_int
  double floating = 0;                                          // constant_float
  std::optional<Table> table;                                   // table_1d, table_2d
  Status error;                                                 // the first type error in here

  Node(Program::Op op_, Program::Type type_) : op(op_), type(type_) {}
  Node(const Node&) = delete;
  ~Node();  // by a loop: expressions may be deeper than the stack
};

namespace programs {

// Floats of masks are float32, also where constants are folded; those of scores float64, so that `eager` has
// all bits.
enum class Kind { mask, score };

std::string_view name(Type type);  // "a boolean", "an integer", "a float"
// How an operation is written: "+", "min", "and".
std::string_view symbol(Op op);

// An operation with its operands checked and, where integers and floats mix, converted.
Expr make(Op op, std::span<const Expr> operands);
Expr make_table(const Table& table, std::span<const Expr> indices);
Expr variable(Op op);
Expr to_float(const Expr& x);

// The expression as a program: equal subexpressions once, constants folded, nothing unused, and operands
// first in the order of a walk from the result. So equal expressions give equal programs, and lower(lift(p))
// is p.
Result<Program> lower(const Expr& root, Kind kind);
// The program's instructions as expressions, one each, with `score` in place of the variable if given.
std::vector<Expr> lift(const Program& program, const std::optional<Expr>& score = std::nullopt);

// The combinators of mask.h, of any operands.
Expr causal();
Expr window(const Expr& size);
Expr window(const Expr& left, const Expr& right);
Expr prefix_lm(const Expr& prefix);
Expr document(const Table& ids);
Expr softcap(const Expr& cap, const Expr& score);
Expr alibi(const Table& slopes, const Expr& score);

// d value / d score. Booleans and integers are piecewise constant; min, max and select take the branch that
// was chosen; abs has derivative 0 at 0.
Program derivative(const Program& score);

}  // namespace programs
}  // namespace chorale
