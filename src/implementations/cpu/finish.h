// The last step of the forward pass, shared by all schedules.
#pragma once

#include <functional>

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// A row's state over all its keys: p = exp2((score - maximum) * log2_factor), their sum, and the values that
// they weigh, unrounded.
struct RowState {
  float maximum, sum;
  float* out;
};

// What a row's values are multiplied by, then divided by, the sink included. LSE = maximum + ln(divisor).
struct Normaliser {
  float scale = 1, divisor = 1, maximum;
};
Normaliser normaliser(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t head, float maximum,
                      float sum);

void store_lse(const ForwardTensors& tensors, std::int64_t query, std::int64_t head, float lse);

// A row that has met all its keys, and where it belongs.
struct FinishedRow {
  std::int64_t query, head;
  RowState state;
};

// One rounding: out and lse of each row. Overwrites what state.out points at.
void finish_rows(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t rows,
                 const std::function<FinishedRow(std::int64_t)>& row);

}  // namespace chorale::tiled
