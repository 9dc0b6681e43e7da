// What interval evaluation is for: tiles that need no work, and tables that would be read outside.
#include <fmt/format.h>

#include <algorithm>

#include "mask/interval.h"
#include "mask/table.h"

namespace chorale {
namespace programs {
namespace {

// Whether a boolean can have this value at some point of the box. "Yes" may be wrong, "no" never is: a search
// that refutes, by narrowing the box to where the value would have to be, and by cases where that does not
// suffice.
bool possible(Interval interval, std::int32_t instruction, bool value, int& cases) {
  interval.require(instruction, Bounds::integers(value, value));
  if (!interval.propagate()) return false;
  const std::int32_t open = interval.undecided();
  if (open < 0 || --cases < 0) return true;
  return possible(interval, open, true, cases) || possible(interval, open, false, cases);
}

bool possible(const Interval& interval, std::int32_t result, bool value) {
  // Usual masks need a handful of cases. Programs of thousands of instructions get fewer, so that a tile's
  // classification stays cheaper than its scores.
  int cases = std::clamp(20000 / (result + 1), 2, 64);
  return possible(interval, result, value, cases);
}

}  // namespace
}  // namespace programs

Coverage classify(const Program& mask, const Box& box) {
  const programs::Interval interval(mask, box);
  if (interval.result().least == 1) return Coverage::full;
  if (interval.result().most == 0) return Coverage::empty;
  const auto result = static_cast<std::int32_t>(mask.instructions().size()) - 1;
  if (!programs::possible(interval, result, true)) return Coverage::empty;
  if (!programs::possible(interval, result, false)) return Coverage::full;
  return Coverage::partial;
}

Status check_table_accesses(const Program& program, const Box& box) {
  const programs::Interval interval(program, box);
  const auto instructions = program.instructions();
  for (const Program::Instruction& instruction : instructions) {
    if (!programs::is_table(instruction.op)) continue;
    const Table& table = program.tables()[static_cast<std::size_t>(instruction.integer)];
    for (int dimension = 0; dimension < table.rank(); ++dimension) {
      const std::int32_t index = instruction.operands[dimension];
      const programs::Bounds& bounds = interval[index];
      const std::int64_t size = dimension == 0 ? table.rows() : table.columns();
      if (bounds.least >= 0 && bounds.most < size) continue;
      const Program index_program({instructions.begin(), instructions.begin() + index + 1},
                                  {program.tables().begin(), program.tables().end()});
      return Status::out_of_range(
          fmt::format("table {}: {}index {} goes from {} to {}, but the table has {} {}", table.name(),
                      table.rank() == 1 ? ""
                      : dimension == 0  ? "row "
                                        : "column ",
                      index_program.to_string(), bounds.least, bounds.most, size,
                      table.rank() == 1 ? "values"
                      : dimension == 0  ? "rows"
                                        : "columns"));
    }
  }
  return Status::ok();
}

}  // namespace chorale
