#include "mask/bounds.h"

#include <algorithm>
#include <cmath>

namespace chorale::programs {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

Bounds boolean(bool can_be_false, bool can_be_true) {
  return Bounds::integers(can_be_false ? 0 : 1, can_be_true ? 1 : 0);
}
const Bounds any_float = Bounds::floats(-infinity, infinity, true);

// From the values at the corners of the operands' ranges: right for functions that are monotone in each
// operand.
template <class Function>
Bounds integer_corners(Function function, const Bounds& x, const Bounds& y) {
  const auto [least, most] = std::minmax({function(x.least, y.least), function(x.least, y.most),
                                          function(x.most, y.least), function(x.most, y.most)});
  return Bounds::integers(least, most);
}
// The same for floats: rounding is monotone too. A corner that is NaN says that anything may be.
template <class Function>
Bounds float_corners(Function function, const Bounds& x, const Bounds& y) {
  const float corners[] = {function(x.least_float, y.least_float), function(x.least_float, y.most_float),
                           function(x.most_float, y.least_float), function(x.most_float, y.most_float)};
  if (std::any_of(std::begin(corners), std::end(corners), [](float c) { return std::isnan(c); }))
    return any_float;
  const auto [least, most] = std::minmax_element(std::begin(corners), std::end(corners));
  return Bounds::floats(*least, *most, x.may_be_nan || y.may_be_nan);
}

bool spans_zero(const Bounds& x) { return x.least_float <= 0 && x.most_float >= 0; }
bool has_infinity(const Bounds& x) { return x.least_float == -infinity || x.most_float == infinity; }

// Division is monotone on either side of a divisor of zero, which gives 0.
Bounds divide_integers(const Bounds& x, const Bounds& y) {
  Bounds result = Bounds::integers(most_integer, least_integer);
  if (y.least < 0)
    result.widen(integer_corners(floor_divide, x, Bounds::integers(y.least, std::min<Integer>(y.most, -1))),
                 Type::integer);
  if (y.most > 0)
    result.widen(integer_corners(floor_divide, x, Bounds::integers(std::max<Integer>(y.least, 1), y.most)),
                 Type::integer);
  if (y.least <= 0 && y.most >= 0) result.widen(Bounds::integers(0, 0), Type::integer);
  return result;
}

Bounds modulo_integers(const Bounds& x, const Bounds& y) {
  const bool one_divisor = y.least == y.most;
  // While the quotient stays, the remainder rises with x.
  if (one_divisor && floor_divide(x.least, y.least) == floor_divide(x.most, y.least))
    return Bounds::integers(floor_modulo(x.least, y.least), floor_modulo(x.most, y.least));
  if (x.least >= 0 && x.most < y.least) return x;
  Bounds result = Bounds::integers(y.least < 0 ? y.least + 1 : 0, y.most > 0 ? y.most - 1 : 0);
  if (x.least >= 0 && y.least > 0) result.most = std::min(result.most, x.most);
  return result;
}

Bounds absolute_integers(const Bounds& x) {
  const Integer least = x.least < 0 ? saturating_negate(x.least) : x.least,
                most = x.most < 0 ? saturating_negate(x.most) : x.most;
  return Bounds::integers(x.least <= 0 && x.most >= 0 ? 0 : std::min(least, most), std::max(least, most));
}

Bounds compare(Op op, Type operand, const Bounds& x, const Bounds& y) {
  const auto decide = [&](auto x_least, auto x_most, auto y_least, auto y_most, bool nan) {
    switch (op) {
      case Op::less:
        return boolean(x_most >= y_least || nan, x_least < y_most);
      case Op::less_equal:
        return boolean(x_most > y_least || nan, x_least <= y_most);
      default:
        break;
    }
    const bool can_be_equal = x_least <= y_most && y_least <= x_most;
    const bool can_differ = !(x_least == x_most && y_least == y_most && x_least == y_least) || nan;
    return op == Op::equal ? boolean(can_differ, can_be_equal) : boolean(can_be_equal, can_differ);
  };
  if (operand == Type::floating)
    return decide(x.least_float, x.most_float, y.least_float, y.most_float, x.may_be_nan || y.may_be_nan);
  return decide(x.least, x.most, y.least, y.most, false);
}

Bounds operate_integers(Op op, const Bounds& x, const Bounds& y) {
  switch (op) {
    case Op::add:
      return Bounds::integers(saturating_add(x.least, y.least), saturating_add(x.most, y.most));
    case Op::subtract:
      return Bounds::integers(saturating_subtract(x.least, y.most), saturating_subtract(x.most, y.least));
    case Op::multiply:
      return integer_corners(saturating_multiply, x, y);
    case Op::divide:
      return divide_integers(x, y);
    case Op::modulo:
      return modulo_integers(x, y);
    case Op::minimum:
      return Bounds::integers(std::min(x.least, y.least), std::min(x.most, y.most));
    case Op::maximum:
      return Bounds::integers(std::max(x.least, y.least), std::max(x.most, y.most));
    case Op::negate:
      return Bounds::integers(saturating_negate(x.most), saturating_negate(x.least));
    case Op::absolute:
      return absolute_integers(x);
    default:
      return Bounds::floats(static_cast<float>(x.least), static_cast<float>(x.most), false);  // to_float
  }
}

// min(x, y) is x where either is NaN.
Bounds minimum_floats(const Bounds& x, const Bounds& y) {
  return Bounds::floats(std::min(x.least_float, y.least_float),
                        y.may_be_nan ? x.most_float : std::min(x.most_float, y.most_float), x.may_be_nan);
}
Bounds maximum_floats(const Bounds& x, const Bounds& y) {
  return Bounds::floats(y.may_be_nan ? x.least_float : std::max(x.least_float, y.least_float),
                        std::max(x.most_float, y.most_float), x.may_be_nan);
}

// A function that rises, but whose rounding is only good to a few units in the last place: its values need
// not rise.
template <class Function>
Bounds rising(Function function, const Bounds& x) {
  const float least = function(x.least_float), most = function(x.most_float);
  if (x.may_be_nan || std::isnan(least) || std::isnan(most)) return any_float;
  const auto margin = [](float value) { return std::isinf(value) ? 0 : std::fabs(value) * 1e-5f + 1e-37f; };
  return Bounds::floats(least - margin(least), most + margin(most), false);
}

Bounds operate_floats(Op op, const Bounds& x, const Bounds& y) {
  switch (op) {
    case Op::add:
      return float_corners([](float a, float b) { return a + b; }, x, y);
    case Op::subtract:
      return float_corners([](float a, float b) { return a - b; }, x, y);
    case Op::multiply:
      if ((spans_zero(x) && has_infinity(y)) || (spans_zero(y) && has_infinity(x))) return any_float;
      return float_corners([](float a, float b) { return a * b; }, x, y);
    case Op::divide:
      if (spans_zero(y) || (has_infinity(x) && has_infinity(y))) return any_float;
      return float_corners([](float a, float b) { return a / b; }, x, y);
    case Op::minimum:
      return minimum_floats(x, y);
    case Op::maximum:
      return maximum_floats(x, y);
    case Op::negate:
      return Bounds::floats(-x.most_float, -x.least_float, x.may_be_nan);
    case Op::absolute: {
      const float least = std::fabs(x.least_float), most = std::fabs(x.most_float);
      return Bounds::floats(spans_zero(x) ? 0 : std::min(least, most), std::max(least, most), x.may_be_nan);
    }
    case Op::tanh:
      return rising([](float a) { return programs::tanh(a); }, x);
    case Op::exp:
      return rising([](float a) { return programs::exp(a); }, x);
    case Op::log:
      return x.least_float < 0 ? any_float : rising([](float a) { return programs::log(a); }, x);
    default:  // sqrt, which is correctly rounded
      if (x.may_be_nan || x.least_float < 0) return any_float;
      return Bounds::floats(std::sqrt(x.least_float), std::sqrt(x.most_float), false);
  }
}

}  // namespace

Bounds Bounds::any(Type type) { return type == Type::boolean ? integers(0, 1) : Bounds(); }

bool Bounds::narrow(const Bounds& other, Type type) {
  const Bounds before = *this;
  if (type == Type::floating) {
    least_float = std::max(least_float, other.least_float);
    most_float = std::min(most_float, other.most_float);
    may_be_nan = may_be_nan && other.may_be_nan;
    return least_float != before.least_float || most_float != before.most_float ||
           may_be_nan != before.may_be_nan;
  }
  least = std::max(least, other.least);
  most = std::min(most, other.most);
  return least != before.least || most != before.most;
}

void Bounds::widen(const Bounds& other, Type type) {
  if (type == Type::floating) {
    least_float = std::min(least_float, other.least_float);
    most_float = std::max(most_float, other.most_float);
    may_be_nan = may_be_nan || other.may_be_nan;
  } else {
    least = std::min(least, other.least);
    most = std::max(most, other.most);
  }
}

Bounds operate(Op op, Type operand, Type result, const Bounds& x, const Bounds& y, const Bounds& z) {
  switch (op) {
    case Op::logical_and:
      return Bounds::integers(x.least & y.least, x.most & y.most);
    case Op::logical_or:
      return Bounds::integers(x.least | y.least, x.most | y.most);
    case Op::logical_not:
      return Bounds::integers(1 - x.most, 1 - x.least);
    case Op::less:
    case Op::less_equal:
    case Op::equal:
    case Op::not_equal:
      return compare(op, operand, x, y);
    case Op::select: {
      if (x.least == x.most) return x.least != 0 ? y : z;
      Bounds either = y;
      either.widen(z, result);
      return either;
    }
    default:
      break;
  }
  // Single values are computed as they will be.
  if (operand != Type::boolean && x.is_point(operand) && (arity(op) == 1 || y.is_point(operand))) {
    const auto value = apply<float>(op, operand, {x.least, x.least_float}, {y.least, y.least_float}, {});
    if (result != Type::floating) return Bounds::integers(value.integer, value.integer);
    return std::isnan(value.floating) ? any_float : Bounds::floats(value.floating, value.floating, false);
  }
  return operand == Type::floating ? operate_floats(op, x, y) : operate_integers(op, x, y);
}

}  // namespace chorale::programs
