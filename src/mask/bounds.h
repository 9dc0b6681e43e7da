// The arithmetic of bounds, forwards: what an operation can give, from what its operands can be.
#pragma once

#include "mask/interval.h"

namespace chorale::programs {

// Any operation other than variables, constants and tables. `operand` is the type of the operands (of x for
// select).
Bounds operate(Op op, Type operand, Type result, const Bounds& x, const Bounds& y, const Bounds& z);

}  // namespace chorale::programs
