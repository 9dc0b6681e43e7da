#include "mask/emit_cuda.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "mask/bounds.h"
#include "mask/expr.h"
#include "mask/table.h"

namespace chorale {
namespace programs {
namespace {

using Instruction = Program::Instruction;

// What every instruction can be on a device, for any batch and any values of the tables.
std::vector<Bounds> device_bounds(const Program& program) {
  std::vector<Bounds> bounds;
  const auto operand = [&](const Instruction& instruction, int j) -> const Bounds& {
    return bounds[static_cast<std::size_t>(instruction.operands[j < arity(instruction.op) ? j : 0])];
  };
  for (const Instruction& instruction : program.instructions()) {
    switch (instruction.op) {
      case Op::constant_bool:
      case Op::constant_int:
        bounds.push_back(Bounds::integers(instruction.integer, instruction.integer));
        continue;
      case Op::b:
        bounds.push_back(Bounds::integers(0, cuda_sequences - 1));
        continue;
      case Op::h:
        bounds.push_back(Bounds::integers(0, cuda_heads - 1));
        continue;
      case Op::q:
        bounds.push_back(Bounds::integers(-cuda_positions, cuda_positions - 1));
        continue;
      case Op::k:
        bounds.push_back(Bounds::integers(0, cuda_positions - 1));
        continue;
      case Op::table_1d:
      case Op::table_2d:
        bounds.push_back(instruction.type == Type::floating
                             ? Bounds::any(Type::floating)
                             : Bounds::integers(std::numeric_limits<std::int32_t>::min(),
                                                std::numeric_limits<std::int32_t>::max()));
        continue;
      default:
        break;
    }
    if (instruction.type == Type::floating || arity(instruction.op) == 0) {
      bounds.push_back(Bounds::any(instruction.type));
      continue;
    }
    const Type type = program.instructions()[static_cast<std::size_t>(instruction.operands[0])].type;
    bounds.push_back(operate(instruction.op, type, instruction.type, operand(instruction, 0),
                             operand(instruction, 1), operand(instruction, 2)));
  }
  return bounds;
}

std::string float_literal(float value) {
  if (std::isfinite(value) && !(value == 0 && std::signbit(value))) return fmt::format("{:a}f", value);
  return fmt::format("__int_as_float(0x{:08x})", std::bit_cast<std::uint32_t>(value));
}
std::string long_literal(Integer value) {
  return value == least_integer ? "least_long" : fmt::format("{}LL", value);
}
// -2147483648 is a long in C++; everything else that fits is an int.
std::string int_literal(Integer value) {
  return value == std::numeric_limits<std::int32_t>::min() ? "int(0x80000000)" : fmt::format("{}", value);
}

std::string_view function_name(Op op) {
  switch (op) {
    case Op::add:
      return "add";
    case Op::subtract:
      return "subtract";
    case Op::multiply:
      return "multiply";
    case Op::divide:
      return "floor_divide";
    case Op::modulo:
      return "floor_modulo";
    case Op::negate:
      return "negate";
    case Op::minimum:
      return "minimum";
    case Op::maximum:
      return "maximum";
    case Op::absolute:
      return "absolute";
    case Op::less:
      return "less";
    case Op::less_equal:
      return "less_equal";
    case Op::logical_and:
      return "logical_and";
    case Op::logical_or:
      return "logical_or";
    case Op::logical_not:
      return "logical_not";
    default:  // not_equal is said as the contrary
      return "equal";
  }
}

std::string_view operator_of(Op op) {
  if (op == Op::logical_and) return "&&";
  return op == Op::logical_or ? "||" : symbol(op);
}

// What a value is of, where it is of one only: all of a row's keys share it, or all of a key's rows. The
// sequence is both's.
enum class Side { row, key };
constexpr std::string_view side_name(Side side) { return side == Side::row ? "row" : "key"; }

// What both readings of a program have in common: names of values, and which integers need 64 bits.
class Emitter {
 public:
  Emitter(const Program& program, std::size_t first_table)
      : program_(program), first_table_(first_table), bounds_(device_bounds(program)) {
    find_loads();
  }
  virtual ~Emitter() = default;

  // Reads of tables that depend on one side only: one value for all of the other. Those that depend on
  // neither are the row's.
  const std::vector<std::int32_t>& loads(Side side) const { return loads_[static_cast<std::size_t>(side)]; }

  // The statements, and what the last one's value is called.
  std::pair<std::string, std::string> emit() const {
    std::string statements;
    for (std::int32_t i = 0; i < size(); ++i) {
      if (!is_used(i)) continue;
      statements += fmt::format("  const {} v{} = {};\n", type_name(i), i, expression(i));
    }
    return {std::move(statements), name(size() - 1)};
  }

 protected:
  virtual std::string leaf(std::int32_t i) const = 0;  // of a constant or a variable
  virtual std::string type_name(std::int32_t i) const = 0;
  virtual std::string expression(std::int32_t i) const = 0;
  virtual std::string converted(std::int32_t i, bool to_wide) const = 0;
  virtual bool is_used(std::int32_t i) const { return arity(at(i).op) > 0; }

  const Instruction& at(std::int32_t i) const { return program_.instructions()[static_cast<std::size_t>(i)]; }
  const Instruction& operand(std::int32_t i, int j) const { return at(at(i).operands[j]); }
  bool is_wide(std::int32_t i) const {
    if (at(i).type != Type::integer) return false;
    const Bounds& bounds = bounds_[static_cast<std::size_t>(i)];
    return bounds.least < std::numeric_limits<std::int32_t>::min() ||
           bounds.most > std::numeric_limits<std::int32_t>::max();
  }
  // Whether an operation on integers is done in 64 bits: if its operands or its result are.
  bool operates_wide(std::int32_t i) const {
    bool wide = is_wide(i);
    for (int j = at(i).op == Op::select ? 1 : 0; j < arity(at(i).op); ++j) wide |= is_wide(at(i).operands[j]);
    return wide;
  }
  std::string name(std::int32_t i) const { return arity(at(i).op) > 0 ? fmt::format("v{}", i) : leaf(i); }
  // Operand j as it is, or as the 64-bit operation needs it.
  std::string value(std::int32_t i, int j) const { return name(at(i).operands[j]); }
  std::string integer(std::int32_t i, int j) const {
    const std::int32_t x = at(i).operands[j];
    return operates_wide(i) && !is_wide(x) ? converted(x, true) : name(x);
  }
  // The result of a 64-bit operation, where it is known to fit 32 bits again.
  std::string result(std::int32_t i, std::string text) const {
    return operates_wide(i) && !is_wide(i) ? narrowed(std::move(text)) : text;
  }
  virtual std::string narrowed(std::string text) const = 0;
  std::string call(std::int32_t i) const {
    std::string arguments = integer(i, 0);
    if (arity(at(i).op) == 2) arguments += ", " + integer(i, 1);
    return fmt::format("{}({})", function_name(at(i).op), arguments);
  }
  std::string table(std::int32_t i) const {
    std::string text =
        fmt::format("tables[{}], {}", first_table_ + static_cast<std::size_t>(at(i).integer), value(i, 0));
    if (at(i).op == Op::table_2d) text += ", " + value(i, 1);
    return text;
  }
  // Of an instruction: the other side does not decide it.
  bool is_of(Side side, std::int32_t i) const {
    const Dependence& on = dependence_[static_cast<std::size_t>(i)];
    return !on.score && !(side == Side::row ? on.key : on.row);
  }
  std::int32_t size() const { return static_cast<std::int32_t>(program_.instructions().size()); }

 private:
  struct Dependence {
    bool row, key, score;
  };
  void find_loads() {
    for (const Instruction& instruction : program_.instructions()) {
      const Op op = instruction.op;
      Dependence on{op == Op::h || op == Op::q, op == Op::k, op == Op::score};
      for (int j = 0; j < arity(op); ++j) {
        const Dependence& x = dependence_[static_cast<std::size_t>(instruction.operands[j])];
        on = {on.row || x.row, on.key || x.key, on.score || x.score};
      }
      if (is_table(op) && !on.score && !(on.row && on.key))
        loads_[static_cast<std::size_t>(on.key ? Side::key : Side::row)].push_back(
            static_cast<std::int32_t>(dependence_.size()));
      dependence_.push_back(on);
    }
  }

  const Program& program_;
  std::size_t first_table_;
  std::vector<Bounds> bounds_;
  std::vector<Dependence> dependence_;
  std::vector<std::int32_t> loads_[2];  // of a Side
};

// Where a program's loads stand among those of the mask and the score: row.v[row] and on, key.v[key] and on.
struct FirstValues {
  std::size_t row = 0, key = 0;
  std::size_t of(Side side) const { return side == Side::row ? row : key; }
};

class PointEmitter : public Emitter {
 public:
  PointEmitter(const Program& program, std::size_t first_table, bool is_score, FirstValues first_values = {})
      : Emitter(program, first_table),
        is_score_(is_score),
        is_needed_(static_cast<std::size_t>(size())),
        first_values_(first_values) {
    is_needed_.back() = true;
    for (std::int32_t i = size() - 1; i >= 0; --i)
      if (is_needed_[static_cast<std::size_t>(i)])
        for (const std::int32_t x : what_is_named(i)) is_needed_[static_cast<std::size_t>(x)] = true;
  }

  // What comes first: the score where the program takes it as it is.
  std::string_view first_statement() const {
    for (std::int32_t i = 0; i < size(); ++i)
      if (at(i).op == Op::score && is_needed_[static_cast<std::size_t>(i)])
        return "  const float scaled = __fmul_rn(score, scale);\n";
    return {};
  }

 protected:
  bool is_used(std::int32_t i) const override {
    return Emitter::is_used(i) && is_needed_[static_cast<std::size_t>(i)];
  }
  std::string leaf(std::int32_t i) const override {
    switch (at(i).op) {
      case Op::constant_bool:
        return at(i).integer != 0 ? "true" : "false";
      case Op::constant_int:
        return is_wide(i) ? long_literal(at(i).integer) : int_literal(at(i).integer);
      case Op::constant_float:
        return float_literal(static_cast<float>(at(i).floating));
      case Op::b:
        return "b";
      case Op::h:
        return "h";
      case Op::q:
        return "q";
      case Op::k:
        return "k";
      default:
        return "scaled";
    }
  }
  std::string type_name(std::int32_t i) const override {
    if (at(i).type == Type::boolean) return "bool";
    if (at(i).type == Type::floating) return "float";
    return is_wide(i) ? "Long" : "int";
  }
  std::string converted(std::int32_t i, bool) const override { return fmt::format("Long({})", name(i)); }
  std::string narrowed(std::string text) const override { return fmt::format("int({})", text); }

  std::string expression(std::int32_t i) const override {
    const Op op = at(i).op;
    const Type operands = operand(i, 0).type;
    switch (op) {
      case Op::table_1d:
      case Op::table_2d:
        return read(i);
      case Op::select:
        return result(i, fmt::format("{} ? {} : {}", value(i, 0), integer(i, 1), integer(i, 2)));
      case Op::less:
      case Op::less_equal:
      case Op::equal:
      case Op::not_equal:
      case Op::logical_and:
      case Op::logical_or:
        return fmt::format("{} {} {}", integer(i, 0), operator_of(op), integer(i, 1));
      case Op::logical_not:
        return fmt::format("!{}", value(i, 0));
      case Op::to_float:
        if (is_float_of_absolute(i)) return fmt::format("fabsf({})", as_float(operand(i, 0).operands[0]));
        return as_float(at(i).operands[0]);
      default:
        break;
    }
    return operands == Type::floating ? floating(i) : result(i, call(i));
  }

  // Of a table: where it depends on one side alone, what program_rows or program_keys has read.
  virtual std::string read(std::int32_t i) const {
    for (const Side side : {Side::row, Side::key}) {
      const auto found = std::ranges::find(loads(side), i);
      if (found == loads(side).end()) continue;
      const std::string value = loaded(side, static_cast<std::size_t>(found - loads(side).begin()));
      return at(i).type == Type::floating ? fmt::format("__int_as_float({})", value) : value;
    }
    return load(i);
  }
  std::string loaded(Side side, std::size_t n) const {
    return fmt::format("{}.v[{}]", side_name(side), first_values_.of(side) + n);
  }
  std::string as_float(std::int32_t i) const {
    return fmt::format("{}({})", is_wide(i) ? "__ll2float_rn" : "__int2float_rn", name(i));
  }
  std::string load(std::int32_t i) const {
    return fmt::format("load<{}>({})", at(i).type == Type::floating ? "float" : "int", table(i));
  }

 private:
  // |x| of an integer that becomes a float: it can become one first, and then the sign costs nothing.
  bool is_float_of_absolute(std::int32_t i) const {
    return at(i).op == Op::to_float && operand(i, 0).op == Op::absolute;
  }

  // What the score is multiplied by, where an instruction does that and no more; 0: it does not.
  float score_factor(std::int32_t i) const {
    if (at(i).op == Op::divide && operand(i, 0).op == Op::score) return score_reciprocal(i);
    if (at(i).op != Op::multiply) return 0;
    for (const int j : {0, 1})
      if (operand(i, j).op == Op::score && operand(i, 1 - j).op == Op::constant_float)
        return static_cast<float>(operand(i, 1 - j).floating);
    return 0;
  }
  // An operation on the score itself takes the product's scale along; empty: it is no such.
  std::string of_score(std::int32_t i) const {
    if (arity(at(i).op) != 2) return {};
    if (const float factor = score_factor(i); factor != 0)
      return fmt::format("__fmul_rn(score, __fmul_rn(scale, {}))", float_literal(factor));
    const bool first = operand(i, 0).op == Op::score, second = operand(i, 1).op == Op::score;
    if (first == second) return {};
    if (at(i).op == Op::add) return fmt::format("__fmaf_rn(score, scale, {})", value(i, first ? 1 : 0));
    if (at(i).op != Op::subtract) return {};
    return first ? fmt::format("__fmaf_rn(score, scale, -({}))", value(i, 1))
                 : fmt::format("__fmaf_rn(-score, scale, {})", value(i, 0));
  }
  // c tanh(x), as a cap is written: the operand that is the tangent; -1: it is not one.
  int tangent_of_cap(std::int32_t i) const {
    if (!is_score_ || at(i).op != Op::multiply) return -1;
    for (const int j : {0, 1})
      if (operand(i, j).op == Op::tanh && operand(i, 1 - j).op == Op::constant_float) return j;
    return -1;
  }
  std::string capped(std::int32_t i, int tangent) const {
    const std::int32_t x = at(at(i).operands[tangent]).operands[0];
    const std::string cap = value(i, 1 - tangent);
    if (const float factor = score_factor(x); factor != 0)
      return fmt::format("fast_cap(score, __fmul_rn(scale, {}), {})", float_literal(factor), cap);
    return fmt::format("fast_cap({}, 1.0f, {})", name(x), cap);
  }
  // The instructions whose values the text of one names.
  std::vector<std::int32_t> what_is_named(std::int32_t i) const {
    if (is_float_of_absolute(i)) return {operand(i, 0).operands[0]};
    for (const Side side : {Side::row, Side::key})
      if (std::ranges::count(loads(side), i) != 0) return {};
    std::vector<std::int32_t> named(at(i).operands, at(i).operands + arity(at(i).op));
    if (const int j = tangent_of_cap(i); j >= 0) {
      const std::int32_t x = at(at(i).operands[j]).operands[0];
      return score_factor(x) != 0 ? std::vector<std::int32_t>{} : std::vector{x};
    }
    if (!of_score(i).empty()) std::erase_if(named, [&](std::int32_t x) { return at(x).op == Op::score; });
    return named;
  }

  std::string floating(std::int32_t i) const {
    if (std::string text = of_score(i); !text.empty()) return text;
    if (const int j = tangent_of_cap(i); j >= 0) return capped(i, j);
    const auto binary = [&](std::string_view function) {
      return fmt::format("{}({}, {})", function, value(i, 0), value(i, 1));
    };
    const auto unary = [&](std::string_view function) {
      return fmt::format("{}({})", function, value(i, 0));
    };
    switch (at(i).op) {
      case Op::add:
        return binary("__fadd_rn");
      case Op::subtract:
        return binary("__fsub_rn");
      case Op::multiply:
        return binary("__fmul_rn");
      case Op::divide:
        if (const auto reciprocal = score_reciprocal(i); reciprocal != 0)
          return fmt::format("__fmul_rn({}, {})", value(i, 0), float_literal(reciprocal));
        return binary("__fdiv_rn");
      case Op::minimum:
        return binary("minimum");
      case Op::maximum:
        return binary("maximum");
      case Op::negate:
        return fmt::format("-({})", value(i, 0));
      case Op::absolute:
        return unary("fabsf");
      case Op::tanh:
        return unary(is_score_ ? "fast_tanh" : "tanh");
      case Op::exp:
        return unary("exp");
      case Op::log:
        return unary("log");
      default:
        return unary("__fsqrt_rn");
    }
  }
  // A score may divide by a constant by multiplying, which is several times as fast; 0: it may not.
  float score_reciprocal(std::int32_t i) const {
    const Instruction& divisor = operand(i, 1);
    if (!is_score_ || divisor.op != Op::constant_float) return 0;
    const auto reciprocal = static_cast<float>(1 / divisor.floating);
    return std::isnormal(reciprocal) ? reciprocal : 0;
  }

  bool is_score_;
  std::vector<bool> is_needed_;

 protected:
  const FirstValues first_values_;
};

// The part of a program that program_rows or program_keys runs.
class LoadEmitter final : public PointEmitter {
 public:
  LoadEmitter(Side side, const Program& program, std::size_t first_table, bool is_score, FirstValues first)
      : PointEmitter(program, first_table, is_score, first), side_(side) {}

  // Statements that read its values.
  std::string emit_loads() const {
    if (loads(side_).empty()) return {};
    std::string text = emit().first;
    for (std::size_t n = 0; n < loads(side_).size(); ++n) {
      const std::int32_t i = loads(side_)[n];
      text +=
          fmt::format("  {} = {};\n", loaded(side_, n),
                      at(i).type == Type::floating ? fmt::format("__float_as_int({})", name(i)) : name(i));
    }
    return fmt::format("  {{\n{}  }}\n", text);
  }

 private:
  bool is_used(std::int32_t i) const override { return arity(at(i).op) > 0 && is_of(side_, i); }
  std::string read(std::int32_t i) const override { return load(i); }

  Side side_;
};

// Floats are not followed: a comparison of floats is not known.
class IntervalEmitter final : public Emitter {
 public:
  using Emitter::Emitter;

 private:
  bool is_used(std::int32_t i) const override { return Emitter::is_used(i) && at(i).type != Type::floating; }
  std::string leaf(std::int32_t i) const override {
    const auto integers = [&](std::string_view least, std::string_view most) {
      return fmt::format("Interval<{}>{{{}, {}}}", is_wide(i) ? "Long" : "int", least, most);
    };
    switch (at(i).op) {
      case Op::constant_bool:
        return at(i).integer != 0 ? "Truth{true, true}" : "Truth{false, false}";
      case Op::constant_int: {
        const std::string text = is_wide(i) ? long_literal(at(i).integer) : int_literal(at(i).integer);
        return integers(text, text);
      }
      case Op::b:
        return integers("b", "b");
      case Op::h:
        return integers("h_first", "h_last");
      case Op::q:
        return integers("q_first", "q_last");
      default:
        return integers("k_first", "k_last");
    }
  }
  std::string type_name(std::int32_t i) const override {
    if (at(i).type == Type::boolean) return "Truth";
    return is_wide(i) ? "Interval<Long>" : "Interval<int>";
  }
  std::string converted(std::int32_t i, bool) const override { return fmt::format("widen({})", name(i)); }
  std::string narrowed(std::string text) const override { return fmt::format("narrow({})", text); }

  std::string expression(std::int32_t i) const override {
    const Op op = at(i).op;
    if (is_table(op)) return fmt::format("extent({})", table(i));
    if (op == Op::select) {
      return result(i, fmt::format("select({}, {}, {})", value(i, 0), integer(i, 1), integer(i, 2)));
    }
    if (operand(i, 0).type == Type::floating) return "Truth{false, true}";
    if (op == Op::not_equal) return fmt::format("logical_not({})", call(i));
    return at(i).type == Type::boolean ? call(i) : result(i, call(i));
  }
};

std::string point_function(std::string_view signature, const Program& program, const PointEmitter& emitter) {
  const auto [statements, value] = emitter.emit();
  return fmt::format(
      "// {}\n__device__ __forceinline__ {} {{\n  using namespace program;\n{}{}  return {};\n}}\n",
      program.to_string(), signature, emitter.first_statement(), statements, value);
}

}  // namespace
}  // namespace programs

Status check_cuda_programs(const Program& mask, const Program& score) {
  for (const auto& [what, program] : {std::pair("mask", &mask), std::pair("score", &score)}) {
    if (program->instructions().size() > cuda_instructions)
      return Status::unsupported(fmt::format("{}: {} operations: must be at most {}", what,
                                             program->instructions().size(), cuda_instructions));
  }
  if (const std::size_t tables = mask.tables().size() + score.tables().size(); tables > cuda_tables)
    return Status::unsupported(
        fmt::format("mask and score: {} tables: must be at most {}", tables, cuda_tables));
  return Status::ok();
}

std::string emit_cuda(const Program& mask, const Program& score) {
  using namespace programs;
  const std::size_t tables = mask.tables().size();
  const PointEmitter visible(mask, 0, false);
  const FirstValues of_score{visible.loads(Side::row).size(), visible.loads(Side::key).size()};
  const PointEmitter scored(score, tables, true, of_score);
  std::string text = "#pragma once\n#include \"program_math.cuh\"\n\nnamespace chorale::kernels {\n\n";
  const auto add_loads = [&](Side side, std::string_view type, std::string_view parameters) {
    text += fmt::format(
        "struct {0} {{\n  static constexpr int count = {1};\n  int v[count + 1];  // no array is empty\n}};\n"
        "__device__ __forceinline__ {0} program_{2}s(const TableView* tables, {3}) {{\n"
        "  using namespace program;\n  {0} {2}{{}};\n{4}{5}  return {2};\n}}\n\n",
        type, of_score.of(side) + scored.loads(side).size(), side_name(side), parameters,
        LoadEmitter(side, mask, 0, false, {}).emit_loads(),
        LoadEmitter(side, score, tables, true, of_score).emit_loads());
  };
  add_loads(Side::row, "RowValues", "int b, int h, int q");
  add_loads(Side::key, "KeyValues", "int b, int k");
  text += point_function(
      "bool program_visible(const TableView* tables, int b, int h, int q, int k, const RowValues& row,\n"
      "                                                const KeyValues& key)",
      mask, visible);
  text += "\n";
  text += point_function(
      "float program_score(const TableView* tables, float score, float scale, int b, int h, int q, int k,\n"
      "                                               const RowValues& row, const KeyValues& key)",
      score, scored);
  const auto [statements, value] = IntervalEmitter(mask, 0).emit();
  text += fmt::format(
      "\n__device__ __forceinline__ int program_coverage(const TableView* tables, int b, int h_first, int "
      "h_last,\n"
      "                                                int q_first, int q_last, int k_first, int k_last) {{\n"
      "  using namespace program;\n{}  const Truth visible = {};\n"
      "  return visible.least ? 2 : visible.most ? 1 : 0;\n}}\n\n}}  // namespace chorale::kernels\n",
      statements, value);
  return text;
}

std::vector<std::int32_t> table_tree(const Table& table) {
  constexpr std::int64_t leaf_values = 8;  // kernels/program_math.cuh
  const Table::Data& data = table.data();
  if (data.is_float) return {};
  const std::int64_t rows = device_rows(table), columns = device_columns(table);
  const std::int64_t leaves = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>((columns + leaf_values - 1) / leaf_values)));
  std::vector<std::int32_t> tree(static_cast<std::size_t>(rows * leaves * 4));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int32_t* values = data.integers.data() + row * columns;
    std::int32_t* nodes = tree.data() + row * leaves * 4;
    for (std::int64_t n = 2 * leaves - 1; n > 0; --n) {
      std::int32_t least = std::numeric_limits<std::int32_t>::max(),
                   most = std::numeric_limits<std::int32_t>::min();
      if (n >= leaves) {
        const std::int64_t first = (n - leaves) * leaf_values, end = std::min(first + leaf_values, columns);
        for (std::int64_t i = first; i < end; ++i) {
          least = std::min(least, values[i]);
          most = std::max(most, values[i]);
        }
      } else {
        least = std::min(nodes[4 * n], nodes[4 * n + 2]);
        most = std::max(nodes[4 * n + 1], nodes[4 * n + 3]);
      }
      nodes[2 * n] = least;
      nodes[2 * n + 1] = most;
    }
  }
  return tree;
}

}  // namespace chorale
