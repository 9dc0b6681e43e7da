// A program at one point: the plainest reading, for the oracle.
#include <array>
#include <cassert>

#include "mask/arithmetic.h"
#include "mask/table.h"

namespace chorale {
namespace programs {
namespace {

template <class Float>
Scalar<Float> look_up(const Table::Data& table, Integer row, Integer column) {
  assert(row >= 0 && row < table.rows && column >= 0 && column < table.columns);
  const auto index = static_cast<std::size_t>(row * table.columns + column);
  return table.is_float ? Scalar<Float>{0, static_cast<Float>(table.floats[index])}
                        : Scalar<Float>{table.integers[index], 0};
}

template <class Float>
Scalar<Float> evaluate(const Program& program, const Point& point, Float score) {
  const auto instructions = program.instructions();
  std::array<Scalar<Float>, 64> few;
  std::vector<Scalar<Float>> many(instructions.size() > few.size() ? instructions.size() : 0);
  Scalar<Float>* const values = many.empty() ? few.data() : many.data();
  for (std::size_t i = 0; i < instructions.size(); ++i) {
    const Program::Instruction& instruction = instructions[i];
    Scalar<Float> x[3];
    for (int j = 0; j < arity(instruction.op); ++j) x[j] = values[instruction.operands[j]];
    switch (instruction.op) {
      case Op::constant_bool:
      case Op::constant_int:
        values[i].integer = instruction.integer;
        break;
      case Op::constant_float:
        values[i].floating = static_cast<Float>(instruction.floating);
        break;
      case Op::b:
        values[i].integer = point.b;
        break;
      case Op::h:
        values[i].integer = point.h;
        break;
      case Op::q:
        values[i].integer = point.q;
        break;
      case Op::k:
        values[i].integer = point.k;
        break;
      case Op::score:
        values[i].floating = score;
        break;
      case Op::table_1d:
      case Op::table_2d:
        values[i] = look_up<Float>(program.tables()[static_cast<std::size_t>(instruction.integer)].data(),
                                   x[0].integer, x[1].integer);
        break;
      default:
        values[i] =
            apply<Float>(instruction.op, instructions[static_cast<std::size_t>(instruction.operands[0])].type,
                         x[0], x[1], x[2]);
    }
  }
  return values[instructions.size() - 1];
}

}  // namespace
}  // namespace programs

bool evaluate_mask(const Program& mask, const Point& point) {
  return programs::evaluate<float>(mask, point, 0).integer != 0;
}
double evaluate_score(const Program& score, const Point& point, double value) {
  return programs::evaluate<double>(score, point, value).floating;
}

}  // namespace chorale
