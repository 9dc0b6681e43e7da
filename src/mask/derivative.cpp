// The derivative of a score program with respect to the score, by the chain rule over its instructions.
#include <cmath>

#include "mask/expr.h"

namespace chorale::programs {
namespace {

// factor * rest, where a missing rest is 1. Keeping the constant apart lets 50 * tanh(score / 50) have the
// derivative 1 - tanh^2 with no factors left over.
struct Term {
  double factor = 1;
  std::optional<Expr> rest;

  Expr expression() const {
    if (!rest) return Expr(factor);
    return factor == 1 ? *rest : Expr(factor) * *rest;
  }
};
using Slope = std::optional<Term>;  // none: zero

Slope scaled(const Slope& slope, double factor) {
  if (!slope || factor == 0) return std::nullopt;
  if (!std::isfinite(slope->factor * factor)) return Term{factor, slope->expression()};
  return Term{slope->factor * factor, slope->rest};
}

// slope * x, and slope / x.
Slope times(const Slope& slope, const Expr& x) {
  if (!slope) return std::nullopt;
  if (x.node()->op == Op::constant_float) return scaled(slope, x.node()->floating);
  return Term{slope->factor, slope->rest ? *slope->rest * x : x};
}
Slope over(const Slope& slope, const Expr& x) {
  if (!slope) return std::nullopt;
  if (x.node()->op == Op::constant_float && std::isfinite(slope->factor / x.node()->floating))
    return Term{slope->factor / x.node()->floating, slope->rest};
  return Term{slope->factor, slope->rest ? *slope->rest / x : 1.0 / x};
}

Slope plus(const Slope& x, const Slope& y) {
  if (!x || !y) return x ? x : y;
  const double factors = x->factor + y->factor;
  if (x->rest || y->rest || !std::isfinite(factors)) return Term{1, x->expression() + y->expression()};
  return factors == 0 ? Slope() : Slope(Term{factors, std::nullopt});
}

Slope choose(const Expr& condition, const Slope& if_true, const Slope& if_false) {
  if (!if_true && !if_false) return std::nullopt;
  const auto value = [](const Slope& slope) { return slope ? slope->expression() : Expr(0.0); };
  return Term{1, expr::select(condition, value(if_true), value(if_false))};
}

// The slope of one instruction, from its operands' values x, y, z and slopes, and its own value.
Slope slope_of(const Program::Instruction& instruction, const Expr& value, const Expr* const (&x)[3],
               const Slope (&slopes)[3]) {
  const Slope &dx = slopes[0], &dy = slopes[1], &dz = slopes[2];
  switch (instruction.op) {
    case Op::score:
      return Term{};
    case Op::add:
      return plus(dx, dy);
    case Op::subtract:
      return plus(dx, scaled(dy, -1));
    case Op::multiply:
      return plus(times(dx, *x[1]), times(dy, *x[0]));
    case Op::divide:
      return over(plus(dx, scaled(times(dy, value), -1)), *x[1]);
    case Op::negate:
      return scaled(dx, -1);
    case Op::minimum:
      return choose(*x[1] < *x[0], dy, dx);
    case Op::maximum:
      return choose(*x[0] < *x[1], dy, dx);
    case Op::absolute:
      return choose(*x[0] < 0.0, scaled(dx, -1), choose(0.0 < *x[0], dx, std::nullopt));
    case Op::select:
      return choose(*x[0], dy, dz);
    case Op::tanh:
      return times(dx, 1.0 - value * value);
    case Op::exp:
      return times(dx, value);
    case Op::log:
      return over(dx, *x[0]);
    case Op::sqrt:
      return scaled(over(dx, value), 0.5);
    default:
      return std::nullopt;  // constants, variables, tables, conversions from integers
  }
}

}  // namespace

Program derivative(const Program& score) {
  const std::vector<Expr> values = lift(score);
  std::vector<Slope> slopes;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const Program::Instruction& instruction = score.instructions()[i];
    if (instruction.type != Type::floating) {
      slopes.emplace_back();
      continue;
    }
    const Expr* operands[3] = {};
    Slope operand_slopes[3];
    for (int j = 0; j < arity(instruction.op); ++j) {
      const auto operand = static_cast<std::size_t>(instruction.operands[j]);
      operands[j] = &values[operand];
      operand_slopes[j] = slopes[operand];
    }
    slopes.push_back(slope_of(instruction, values[i], operands, operand_slopes));
  }
  return lower(slopes.back() ? slopes.back()->expression() : Expr(0.0), Kind::score).value();
}

}  // namespace chorale::programs
