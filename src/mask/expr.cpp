#include "mask/expr.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace chorale {

// Operands are put on a list instead of being released here, so that no destructor calls another.
Expr::Node::~Node() {
  std::vector<std::shared_ptr<const Node>> released;
  const auto release_operands = [&](const Node& node) {
    for (auto& operand : node.operands)
      if (operand != nullptr) released.push_back(std::move(operand));
  };
  release_operands(*this);
  while (!released.empty()) {
    const std::shared_ptr<const Node> node = std::move(released.back());
    released.pop_back();
    if (node.use_count() == 1) release_operands(*node);
  }
}

namespace programs {
namespace {

using Node = Expr::Node;

bool is_number(const Expr& x) { return x.node()->type != Type::boolean; }

Expr constant(Op op, Type type, std::int64_t integer, double floating) {
  auto node = std::make_shared<Node>(op, type);
  node->integer = integer;
  node->floating = floating;
  if (std::isnan(floating)) node->error = Status::invalid_argument("a constant is NaN: it must be a number");
  return Expr(std::move(node));
}

Status numbers_needed(Op op, std::span<const Expr> operands) {
  for (const Expr& operand : operands)
    if (!is_number(operand))
      return Status::invalid_argument(
          fmt::format("'{}' needs numbers, not {}", symbol(op), name(operand.node()->type)));
  return Status::ok();
}

Status booleans_needed(Op op, std::span<const Expr> operands) {
  for (const Expr& operand : operands)
    if (is_number(operand))
      return Status::invalid_argument(
          fmt::format("'{}' needs booleans, not {}", symbol(op), name(operand.node()->type)));
  return Status::ok();
}

Status integers_needed(std::string_view what, std::span<const Expr> operands) {
  for (const Expr& operand : operands)
    if (operand.node()->type != Type::integer)
      return Status::invalid_argument(
          fmt::format("{} needs integers, not {}", what, name(operand.node()->type)));
  return Status::ok();
}

// Whether the operation takes operands of these types, apart from the mixing of integers and floats.
Status check(Op op, std::span<const Expr> x) {
  switch (op) {
    case Op::logical_and:
    case Op::logical_or:
    case Op::logical_not:
      return booleans_needed(op, x);
    case Op::modulo:
      return integers_needed("'%'", x);
    case Op::select:
      if (is_number(x[0]))
        return Status::invalid_argument(
            fmt::format("the condition of 'select' must be a boolean, not {}", name(x[0].node()->type)));
      [[fallthrough]];
    case Op::equal:
    case Op::not_equal: {
      const std::span<const Expr> pair = x.last(2);
      if (is_number(pair[0]) == is_number(pair[1])) return Status::ok();
      return Status::invalid_argument(fmt::format("'{}' cannot take {} and {} together", symbol(op),
                                                  name(pair[0].node()->type), name(pair[1].node()->type)));
    }
    default:
      return numbers_needed(op, x);
  }
}

Type result_type(Op op, Type operand) {
  switch (op) {
    case Op::less:
    case Op::less_equal:
    case Op::equal:
    case Op::not_equal:
    case Op::logical_and:
    case Op::logical_or:
    case Op::logical_not:
      return Type::boolean;
    default:
      return operand;
  }
}

bool always_float(Op op) { return op == Op::tanh || op == Op::exp || op == Op::log || op == Op::sqrt; }

std::shared_ptr<Node> make_node(Op op, Type type, std::span<const Expr> operands, Status error = {}) {
  auto node = std::make_shared<Node>(op, type);
  node->error = std::move(error);
  for (std::size_t i = 0; i < operands.size(); ++i) {
    node->operands[i] = operands[i].node();
    if (!operands[i].node()->error.is_ok()) node->error = operands[i].node()->error;
  }
  return node;
}

}  // namespace

std::string_view name(Type type) {
  switch (type) {
    case Type::boolean:
      return "a boolean";
    case Type::integer:
      return "an integer";
    case Type::floating:
      return "a float";
  }
  return "unknown";
}

std::string_view symbol(Op op) {
  switch (op) {
    case Op::b:
      return "b";
    case Op::h:
      return "h";
    case Op::q:
      return "q";
    case Op::k:
      return "k";
    case Op::score:
      return "score";
    case Op::add:
      return "+";
    case Op::subtract:
    case Op::negate:
      return "-";
    case Op::multiply:
      return "*";
    case Op::divide:
      return "/";
    case Op::modulo:
      return "%";
    case Op::minimum:
      return "min";
    case Op::maximum:
      return "max";
    case Op::absolute:
      return "abs";
    case Op::less:
      return "<";
    case Op::less_equal:
      return "<=";
    case Op::equal:
      return "==";
    case Op::not_equal:
      return "!=";
    case Op::logical_and:
      return "and";
    case Op::logical_or:
      return "or";
    case Op::logical_not:
      return "not";
    case Op::select:
      return "select";
    case Op::to_float:
      return "float";
    case Op::tanh:
      return "tanh";
    case Op::exp:
      return "exp";
    case Op::log:
      return "log";
    case Op::sqrt:
      return "sqrt";
    case Op::constant_bool:
    case Op::constant_int:
    case Op::constant_float:
    case Op::table_1d:
    case Op::table_2d:
      break;
  }
  return "";
}

Expr variable(Op op) {
  return Expr(std::make_shared<Node>(op, op == Op::score ? Type::floating : Type::integer));
}

Expr make(Op op, std::span<const Expr> operands) {
  if (Status error = check(op, operands); !error.is_ok())
    return Expr(make_node(op, result_type(op, Type::integer), operands, std::move(error)));
  std::vector<Expr> converted(operands.begin(), operands.end());
  const std::size_t first = op == Op::select ? 1 : 0;  // a condition is no number
  bool any_float = always_float(op);
  for (std::size_t i = first; i < converted.size(); ++i)
    any_float |= converted[i].node()->type == Type::floating;
  if (any_float)
    for (std::size_t i = first; i < converted.size(); ++i) converted[i] = to_float(converted[i]);
  return Expr(make_node(op, result_type(op, converted.back().node()->type), converted));
}

Expr to_float(const Expr& x) {
  if (x.node()->type == Type::floating) return x;
  const std::span<const Expr> operand(&x, 1);
  return Expr(make_node(Op::to_float, Type::floating, operand, numbers_needed(Op::to_float, operand)));
}

Expr make_table(const Table& table, std::span<const Expr> indices) {
  Status error = integers_needed(fmt::format("an index of table {}", table.name()), indices);
  if (static_cast<int>(indices.size()) != table.rank())
    error = Status::invalid_argument(fmt::format("table {} needs {}, not {}", table.name(),
                                                 table.rank() == 1 ? "one index" : "two indices",
                                                 indices.size()));
  const Op op = indices.size() == 1 ? Op::table_1d : Op::table_2d;
  const auto some =
      indices.first(std::min(indices.size(), static_cast<std::size_t>(arity(op))));  // of too many
  auto access = make_node(op, table.is_float() ? Type::floating : Type::integer, some, std::move(error));
  access->table = table;
  return Expr(std::move(access));
}

std::vector<Expr> lift(const Program& program, const std::optional<Expr>& score) {
  std::vector<Expr> values;
  values.reserve(program.instructions().size());
  for (const Program::Instruction& instruction : program.instructions()) {
    if (instruction.op == Op::score && score) {
      values.push_back(*score);
      continue;
    }
    auto node = std::make_shared<Node>(instruction.op, instruction.type);
    for (int i = 0; i < arity(instruction.op); ++i)
      node->operands[i] = values[static_cast<std::size_t>(instruction.operands[i])].node();
    node->integer = instruction.integer;
    node->floating = instruction.floating;
    if (is_table(instruction.op))
      node->table = program.tables()[static_cast<std::size_t>(instruction.integer)];
    values.emplace_back(std::move(node));
  }
  return values;
}

}  // namespace programs

using programs::make;
using programs::Op;
using programs::Type;

Expr::Expr(int value) : Expr(static_cast<std::int64_t>(value)) {}
Expr::Expr(std::int64_t value) : Expr(programs::constant(Op::constant_int, Type::integer, value, 0)) {}
Expr::Expr(double value) : Expr(programs::constant(Op::constant_float, Type::floating, 0, value)) {}
Expr::Expr(bool value) : Expr(programs::constant(Op::constant_bool, Type::boolean, value, 0)) {}

namespace expr {
Expr b() { return programs::variable(Op::b); }
Expr h() { return programs::variable(Op::h); }
Expr q() { return programs::variable(Op::q); }
Expr k() { return programs::variable(Op::k); }
Expr score() { return programs::variable(Op::score); }
Expr at(const Table& table, Expr i) { return programs::make_table(table, {{i}}); }
Expr at(const Table& table, Expr i, Expr j) { return programs::make_table(table, {{i, j}}); }
Expr min(Expr x, Expr y) { return make(Op::minimum, {{x, y}}); }
Expr max(Expr x, Expr y) { return make(Op::maximum, {{x, y}}); }
Expr abs(Expr x) { return make(Op::absolute, {{x}}); }
Expr select(Expr condition, Expr if_true, Expr if_false) {
  return make(Op::select, {{condition, if_true, if_false}});
}
Expr to_float(Expr x) { return programs::to_float(x); }
Expr tanh(Expr x) { return make(Op::tanh, {{x}}); }
Expr exp(Expr x) { return make(Op::exp, {{x}}); }
Expr log(Expr x) { return make(Op::log, {{x}}); }
Expr sqrt(Expr x) { return make(Op::sqrt, {{x}}); }
}  // namespace expr

Expr operator+(Expr x, Expr y) { return make(Op::add, {{x, y}}); }
Expr operator-(Expr x, Expr y) { return make(Op::subtract, {{x, y}}); }
Expr operator*(Expr x, Expr y) { return make(Op::multiply, {{x, y}}); }
Expr operator/(Expr x, Expr y) { return make(Op::divide, {{x, y}}); }
Expr operator%(Expr x, Expr y) { return make(Op::modulo, {{x, y}}); }
Expr operator-(Expr x) { return make(Op::negate, {{x}}); }
Expr operator<(Expr x, Expr y) { return make(Op::less, {{x, y}}); }
Expr operator<=(Expr x, Expr y) { return make(Op::less_equal, {{x, y}}); }
Expr operator>(Expr x, Expr y) { return make(Op::less, {{y, x}}); }
Expr operator>=(Expr x, Expr y) { return make(Op::less_equal, {{y, x}}); }
Expr operator==(Expr x, Expr y) { return make(Op::equal, {{x, y}}); }
Expr operator!=(Expr x, Expr y) { return make(Op::not_equal, {{x, y}}); }
Expr operator&&(Expr x, Expr y) { return make(Op::logical_and, {{x, y}}); }
Expr operator||(Expr x, Expr y) { return make(Op::logical_or, {{x, y}}); }
Expr operator!(Expr x) { return make(Op::logical_not, {{x}}); }

}  // namespace chorale
