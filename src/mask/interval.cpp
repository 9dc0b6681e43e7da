#include "mask/interval.h"

#include <algorithm>

#include "mask/bounds.h"
#include "mask/table.h"

namespace chorale::programs {

Interval::Interval(const Program& program, const Box& box)
    : program_(&program), box_(box), follow_floats_(program.result().type == Type::boolean) {
  bounds_.reserve(program.instructions().size());
  for (const Program::Instruction& instruction : program.instructions())
    bounds_.push_back(forward(instruction));
}

Bounds Interval::forward(const Program::Instruction& instruction) const {
  const auto range = [](const Range& r) { return Bounds::integers(r.first, r.last); };
  switch (instruction.op) {
    case Op::constant_bool:
    case Op::constant_int:
      return Bounds::integers(instruction.integer, instruction.integer);
    case Op::b:
      return range(box_.b);
    case Op::h:
      return range(box_.h);
    case Op::q:
      return range(box_.q);
    case Op::k:
      return range(box_.k);
    case Op::table_1d:
    case Op::table_2d:
      return look_up(instruction);
    default:
      break;
  }
  if (instruction.type == Type::floating && !follow_floats_) return Bounds::any(Type::floating);
  if (instruction.op == Op::constant_float) {
    const auto value = static_cast<float>(instruction.floating);
    return Bounds::floats(value, value, false);
  }
  if (instruction.op == Op::score) return Bounds::any(Type::floating);
  const auto operand = [&](int j) -> const Bounds& {
    return (*this)[instruction.operands[j < arity(instruction.op) ? j : 0]];
  };
  return operate(instruction.op, at(instruction.operands[0]).type, instruction.type, operand(0), operand(1),
                 operand(2));
}

// An index outside the table is an error that was found before; what is inside counts.
Bounds Interval::look_up(const Program::Instruction& instruction) const {
  const Table::Data& table = program_->tables()[static_cast<std::size_t>(instruction.integer)].data();
  const Bounds& row = (*this)[instruction.operands[0]];
  const Bounds column = table.rank == 2 ? (*this)[instruction.operands[1]] : Bounds::integers(0, 0);
  const Integer first_row = std::max<Integer>(row.least, 0), last_row = std::min(row.most, table.rows - 1);
  const Integer first_column = std::max<Integer>(column.least, 0),
                last_column = std::min(column.most, table.columns - 1);
  if (first_row > last_row || first_column > last_column) return Bounds::any(instruction.type);
  if (!table.is_float) {
    const auto extent = table.integers_over(first_row, last_row, first_column, last_column);
    return Bounds::integers(extent.least, extent.most);
  }
  const auto extent = table.floats_over(first_row, last_row, first_column, last_column);
  if (extent.empty() || !follow_floats_) return Bounds::any(Type::floating);
  return Bounds::floats(extent.least, extent.most, table.has_nan);
}

void Interval::require(std::int32_t i, const Bounds& bounds) {
  Bounds& mine = bounds_[static_cast<std::size_t>(i)];
  changed_ |= mine.narrow(bounds, at(i).type);
  contradiction_ |= mine.is_empty(at(i).type);
}
// Bounds beyond 64 bits are beyond every integer, or no bound at all.
void Interval::at_least(std::int32_t i, __int128 least) {
  contradiction_ |= least > most_integer;
  if (least > least_integer && least <= most_integer)
    require(i, Bounds::integers(static_cast<Integer>(least), most_integer));
}
void Interval::at_most(std::int32_t i, __int128 most) {
  contradiction_ |= most < least_integer;
  if (most < most_integer && most >= least_integer)
    require(i, Bounds::integers(least_integer, static_cast<Integer>(most)));
}

bool Interval::propagate() {
  constexpr int rounds = 8;  // usual masks are settled after two
  for (int round = 0; round < rounds && !contradiction_; ++round) {
    changed_ = false;
    for (std::int32_t i = size() - 1; i >= 0 && !contradiction_; --i) backward(i);
    for (std::int32_t i = 0; i < size() && !contradiction_; ++i) {
      // Leaves keep what was learned of them.
      if (arity(at(i).op) > 0) require(i, forward(at(i)));
    }
    if (!changed_) break;
  }
  return !contradiction_;
}

void Interval::backward(std::int32_t i) {
  const Program::Instruction& instruction = at(i);
  const Bounds result = (*this)[i];
  if (arity(instruction.op) == 0 || is_table(instruction.op)) return;
  if (instruction.op == Op::select) {
    if (is_true(instruction.operands[0])) return require(instruction.operands[1], result);
    if (is_false(instruction.operands[0])) return require(instruction.operands[2], result);
    // A branch that cannot give the result was not taken.
    const auto possible = [&](int branch) {
      Bounds both = (*this)[instruction.operands[branch]];
      both.narrow(result, instruction.type);
      return !both.is_empty(instruction.type);
    };
    if (!possible(1)) require(instruction.operands[0], Bounds::integers(0, 0));
    if (!possible(2)) require(instruction.operands[0], Bounds::integers(1, 1));
    return;
  }
  const Type operand = at(instruction.operands[0]).type;
  if (instruction.type == Type::boolean && result.least != result.most) return;
  if (operand == Type::boolean) return backward_logic(instruction, result.least == 1);
  if (operand == Type::floating || instruction.type == Type::floating) return;
  if (instruction.type == Type::boolean)
    return backward_comparison(instruction.op, instruction.operands[0], instruction.operands[1],
                               result.least == 1);
  backward_arithmetic(instruction, result);
}

void Interval::backward_logic(const Program::Instruction& instruction, bool result) {
  const std::int32_t x = instruction.operands[0], y = instruction.operands[1];
  const auto set = [&](std::int32_t i, bool value) { require(i, Bounds::integers(value, value)); };
  switch (instruction.op) {
    case Op::logical_not:
      return set(x, !result);
    case Op::logical_and:
    case Op::logical_or: {
      // `strong` is the operand's value that decides alone: false for and, true for or.
      const bool strong = instruction.op == Op::logical_or;
      if (result != strong) return set(x, !strong), set(y, !strong);
      const auto is_weak = [&](std::int32_t i) { return strong ? is_false(i) : is_true(i); };
      if (is_weak(x)) set(y, strong);
      if (is_weak(y)) set(x, strong);
      return;
    }
    default: {  // equal, not_equal
      const bool same = (instruction.op == Op::equal) == result;
      if (is_true(x) || is_false(x)) set(y, is_true(x) == same);
      if (is_true(y) || is_false(y)) set(x, is_true(y) == same);
    }
  }
}

void Interval::backward_comparison(Op op, std::int32_t x, std::int32_t y, bool result) {
  switch (op) {
    case Op::less:
      if (!result) return backward_comparison(Op::less_equal, y, x, true);
      at_most(x, static_cast<__int128>((*this)[y].most) - 1);
      at_least(y, static_cast<__int128>((*this)[x].least) + 1);
      return;
    case Op::less_equal:
      if (!result) return backward_comparison(Op::less, y, x, true);
      at_most(x, (*this)[y].most);
      at_least(y, (*this)[x].least);
      return;
    case Op::not_equal:
      return backward_comparison(Op::equal, x, y, !result);
    default:
      break;
  }
  if (result) {
    require(x, (*this)[y]);
    require(y, (*this)[x]);
    return;
  }
  // A single value can be cut off the end of the other's range.
  const auto avoid = [&](std::int32_t i, const Bounds& value) {
    if (value.least != value.most) return;
    if ((*this)[i].least == value.least) at_least(i, static_cast<__int128>(value.least) + 1);
    if ((*this)[i].most == value.most) at_most(i, static_cast<__int128>(value.most) - 1);
  };
  avoid(x, (*this)[y]);
  avoid(y, (*this)[x]);
}

// A result at an end of the integers may have been saturated, so that end demands nothing.
void Interval::backward_arithmetic(const Program::Instruction& instruction, const Bounds& result) {
  using Wide = __int128;
  const std::int32_t x = instruction.operands[0], y = instruction.operands[1];
  const bool has_least = result.least != least_integer, has_most = result.most != most_integer;
  const Wide least = result.least, most = result.most;
  const auto low = [&](std::int32_t i) { return static_cast<Wide>((*this)[i].least); };
  const auto high = [&](std::int32_t i) { return static_cast<Wide>((*this)[i].most); };
  const auto quotient = [](Wide a, Wide b) {
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
  };  // rounded down
  switch (instruction.op) {
    case Op::add:
      if (has_least) at_least(x, least - high(y)), at_least(y, least - high(x));
      if (has_most) at_most(x, most - low(y)), at_most(y, most - low(x));
      return;
    case Op::subtract:
      if (has_least) at_least(x, least + low(y)), at_most(y, high(x) - least);
      if (has_most) at_most(x, most + high(y)), at_least(y, low(x) - most);
      return;
    case Op::negate:
      if (has_least) at_most(x, -least);
      if (has_most) at_least(x, -most);
      return;
    case Op::absolute:
      if (has_most) at_most(x, most), at_least(x, -most);
      if (low(x) > -least) at_least(x, least);
      if (high(x) < least) at_most(x, -least);
      return;
    case Op::minimum:
      at_least(x, least), at_least(y, least);
      if (low(x) > most) at_most(y, most);
      if (low(y) > most) at_most(x, most);
      return;
    case Op::maximum:
      at_most(x, most), at_most(y, most);
      if (high(x) < least) at_least(y, least);
      if (high(y) < least) at_least(x, least);
      return;
    case Op::multiply: {
      const std::int32_t factor = low(x) == high(x) ? x : y, other = factor == x ? y : x;
      const Wide c = low(factor);
      if (c != high(factor) || c == 0) return;
      if (has_least) c > 0 ? at_least(other, -quotient(-least, c)) : at_most(other, quotient(least, c));
      if (has_most) c > 0 ? at_most(other, quotient(most, c)) : at_least(other, -quotient(-most, c));
      return;
    }
    case Op::divide: {
      const Wide c = low(y);
      if (c != high(y) || c <= 0) return;
      if (has_least) at_least(x, least * c);
      if (has_most) at_most(x, most * c + c - 1);
      return;
    }
    default:
      return;  // a remainder says little about what was divided
  }
}

std::int32_t Interval::undecided() const {
  const auto known = [&](std::int32_t i) { return is_true(i) || is_false(i); };
  for (std::int32_t i = size() - 1; i >= 0; --i) {
    const Program::Instruction& instruction = at(i);
    if (instruction.type != Type::boolean || !known(i) || arity(instruction.op) < 2) continue;
    const std::int32_t x = instruction.operands[0], y = instruction.operands[1];
    if (at(x).type != Type::boolean || known(x)) continue;
    const bool settled = (instruction.op == Op::logical_or && is_true(y)) ||
                         (instruction.op == Op::logical_and && is_false(y));
    if (!settled) return x;
  }
  return -1;
}

}  // namespace chorale::programs
