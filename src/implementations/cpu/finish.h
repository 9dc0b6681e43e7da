// The last step of the forward pass, shared by all schedules.
#pragma once

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// A row's state over all its keys: p = exp2((score - maximum) * log2_factor), their sum, and the values that
// they weigh, unrounded.
struct RowState {
  float maximum, sum;
  float* out;
};

// One rounding: the row's out and lse, the sink included. Overwrites state.out.
void finish_row(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t query, std::int64_t head,
                const RowState& state);

}  // namespace chorale::tiled
