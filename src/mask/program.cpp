#include "mask/program.h"

#include <algorithm>

#include "mask/arithmetic.h"
#include "mask/table.h"

namespace chorale {

Program::Program(std::vector<Instruction> instructions, std::vector<Table> tables)
    : instructions_(std::move(instructions)), tables_(std::move(tables)) {}

bool Program::uses(Op variable) const {
  return std::any_of(instructions_.begin(), instructions_.end(),
                     [&](const Instruction& i) { return i.op == variable; });
}

bool operator==(const Program& x, const Program& y) {
  const auto same_table = [](const Table& s, const Table& t) {
    return &s.data() == &t.data() || s.data().same_content(t.data());
  };
  return std::ranges::equal(x.instructions(), y.instructions()) &&
         std::ranges::equal(x.tables(), y.tables(), same_table);
}

}  // namespace chorale
