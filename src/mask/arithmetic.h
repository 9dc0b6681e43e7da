// What each operation of a program means, written once: saturating integers, IEEE floats, 0-or-1 booleans.
//
// A program is run on single values (evaluate.cpp), on constants (lower.cpp) and on rows (row_evaluator.cpp).
// All of them get the function to apply from visit_unary and visit_binary, so they cannot disagree.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "mask/program.h"
#include "simd/simd.h"

namespace chorale::programs {

using Op = Program::Op;
using Type = Program::Type;
using Integer = std::int64_t;
using Boolean = std::uint8_t;  // 0 or 1; arrays of bool do not vectorise as well

inline constexpr Integer least_integer = std::numeric_limits<Integer>::min();
inline constexpr Integer most_integer = std::numeric_limits<Integer>::max();

constexpr int arity(Op op) {
  switch (op) {
    case Op::constant_bool:
    case Op::constant_int:
    case Op::constant_float:
    case Op::b:
    case Op::h:
    case Op::q:
    case Op::k:
    case Op::score:
      return 0;
    case Op::negate:
    case Op::absolute:
    case Op::logical_not:
    case Op::to_float:
    case Op::tanh:
    case Op::exp:
    case Op::log:
    case Op::sqrt:
    case Op::table_1d:
      return 1;
    case Op::select:
      return 3;
    default:
      return 2;
  }
}
constexpr bool is_constant(Op op) {
  return op == Op::constant_bool || op == Op::constant_int || op == Op::constant_float;
}
constexpr bool is_table(Op op) { return op == Op::table_1d || op == Op::table_2d; }

// Sums and differences are bit arithmetic, so that loops over them vectorise: where the sign bit of
// `overflow` is set, the result is the end of the integers on x's side.
inline Integer saturate(std::uint64_t wrapped, std::uint64_t overflow, std::uint64_t x) {
  const std::uint64_t lost = 0 - (overflow >> 63),
                      limit = static_cast<std::uint64_t>(most_integer) + (x >> 63);
  return static_cast<Integer>((wrapped & ~lost) | (limit & lost));
}
inline Integer saturating_add(Integer x, Integer y) {
  const auto a = static_cast<std::uint64_t>(x), b = static_cast<std::uint64_t>(y), sum = a + b;
  return saturate(sum, (a ^ sum) & (b ^ sum), a);
}
inline Integer saturating_subtract(Integer x, Integer y) {
  const auto a = static_cast<std::uint64_t>(x), b = static_cast<std::uint64_t>(y), difference = a - b;
  return saturate(difference, (a ^ b) & (a ^ difference), a);
}
inline Integer saturating_multiply(Integer x, Integer y) {
  Integer product;
  if (!__builtin_mul_overflow(x, y, &product)) return product;
  return (x < 0) == (y < 0) ? most_integer : least_integer;
}
inline Integer saturating_negate(Integer x) { return x == least_integer ? most_integer : -x; }
inline Integer floor_divide(Integer x, Integer y) {
  if (y == 0) return 0;
  if (y == -1) return saturating_negate(x);  // the processor traps on the one quotient that does not fit
  const Integer quotient = x / y;
  return x % y != 0 && (x < 0) != (y < 0) ? quotient - 1 : quotient;
}
inline Integer floor_modulo(Integer x, Integer y) {  // has the sign of y
  if (y == 0 || y == -1) return 0;
  const Integer remainder = x % y;
  return remainder != 0 && (remainder < 0) != (y < 0) ? remainder + y : remainder;
}

// A single float goes through the vector functions, so that it has the bits it would have in a row.
inline float tanh(float x) { return simd::tanh(&x, &x, 1), x; }
inline float exp(float x) { return simd::exp(&x, &x, 1), x; }
inline float log(float x) { return simd::log(&x, &x, 1), x; }
inline double tanh(double x) { return std::tanh(x); }
inline double exp(double x) { return std::exp(x); }
inline double log(double x) { return std::log(x); }

// Calls run(function) with what `op` does to an operand of type `operand`.
template <class Float, class Run>
void visit_unary(Op op, Type operand, Run&& run) {
  if (operand == Type::boolean) return run([](Boolean x) -> Boolean { return x ^ 1; });
  if (operand == Type::integer) {
    switch (op) {
      case Op::negate:
        return run([](Integer x) { return saturating_negate(x); });
      case Op::absolute:
        return run([](Integer x) { return x < 0 ? saturating_negate(x) : x; });
      default:
        return run([](Integer x) { return static_cast<Float>(x); });  // to_float
    }
  }
  switch (op) {
    case Op::negate:
      return run([](Float x) { return -x; });
    case Op::absolute:
      return run([](Float x) { return std::fabs(x); });
    case Op::tanh:
      return run([](Float x) { return programs::tanh(x); });
    case Op::exp:
      return run([](Float x) { return programs::exp(x); });
    case Op::log:
      return run([](Float x) { return programs::log(x); });
    default:
      return run([](Float x) { return std::sqrt(x); });
  }
}

// The operations that numbers of both kinds have. min(x, y) is y < x ? y : x and max(x, y) is x < y ? y : x,
// which says what they give for NaN: the first operand.
template <class Number, class Run>
bool visit_ordered(Op op, Run&& run) {
  switch (op) {
    case Op::minimum:
      return run([](Number x, Number y) { return y < x ? y : x; }), true;
    case Op::maximum:
      return run([](Number x, Number y) { return x < y ? y : x; }), true;
    case Op::less:
      return run([](Number x, Number y) -> Boolean { return x < y; }), true;
    case Op::less_equal:
      return run([](Number x, Number y) -> Boolean { return x <= y; }), true;
    case Op::equal:
      return run([](Number x, Number y) -> Boolean { return x == y; }), true;
    case Op::not_equal:
      return run([](Number x, Number y) -> Boolean { return x != y; }), true;
    default:
      return false;
  }
}

// Calls run(function) with what `op` does to two operands of type `operands`.
template <class Float, class Run>
void visit_binary(Op op, Type operands, Run&& run) {
  if (operands == Type::boolean) {
    switch (op) {
      case Op::logical_and:
        return run([](Boolean x, Boolean y) -> Boolean { return x & y; });
      case Op::logical_or:
        return run([](Boolean x, Boolean y) -> Boolean { return x | y; });
      case Op::equal:
        return run([](Boolean x, Boolean y) -> Boolean { return x == y; });
      default:
        return run([](Boolean x, Boolean y) -> Boolean { return x != y; });
    }
  }
  if (operands == Type::integer) {
    if (visit_ordered<Integer>(op, run)) return;
    switch (op) {
      case Op::add:
        return run([](Integer x, Integer y) { return saturating_add(x, y); });
      case Op::subtract:
        return run([](Integer x, Integer y) { return saturating_subtract(x, y); });
      case Op::multiply:
        return run([](Integer x, Integer y) { return saturating_multiply(x, y); });
      case Op::divide:
        return run([](Integer x, Integer y) { return floor_divide(x, y); });
      default:
        return run([](Integer x, Integer y) { return floor_modulo(x, y); });
    }
  }
  if (visit_ordered<Float>(op, run)) return;
  switch (op) {
    case Op::add:
      return run([](Float x, Float y) { return x + y; });
    case Op::subtract:
      return run([](Float x, Float y) { return x - y; });
    case Op::multiply:
      return run([](Float x, Float y) { return x * y; });
    default:
      return run([](Float x, Float y) { return x / y; });
  }
}

// The type of a unary function's operand, or of both of a binary function's, and of what it returns.
template <class Function>
struct Signature : Signature<decltype(&Function::operator())> {};
template <class Function, class R, class X, class... Rest>
struct Signature<R (Function::*)(X, Rest...) const> {
  using Operand = X;
  using Result = R;
};

// One value of any type; `integer` also holds booleans.
template <class Float>
struct Scalar {
  Integer integer = 0;
  Float floating = 0;

  template <class T>
  T get() const {
    if constexpr (std::is_floating_point_v<T>)
      return floating;
    else
      return static_cast<T>(integer);
  }
  template <class T>
  static Scalar of(T value) {
    if constexpr (std::is_floating_point_v<T>)
      return {0, value};
    else
      return {static_cast<Integer>(value), 0};
  }
};

// An operation other than a variable, a constant or a table, applied to single values.
template <class Float>
Scalar<Float> apply(Op op, Type operand, const Scalar<Float>& x, const Scalar<Float>& y,
                    const Scalar<Float>& z) {
  if (op == Op::select) return x.integer != 0 ? y : z;
  Scalar<Float> result;
  const auto run = [&](auto function) {
    using T = typename Signature<decltype(function)>::Operand;
    if constexpr (std::is_invocable_v<decltype(function), T>)
      result = Scalar<Float>::of(function(x.template get<T>()));
    else
      result = Scalar<Float>::of(function(x.template get<T>(), y.template get<T>()));
  };
  if (arity(op) == 1)
    visit_unary<Float>(op, operand, run);
  else
    visit_binary<Float>(op, operand, run);
  return result;
}

}  // namespace chorale::programs
