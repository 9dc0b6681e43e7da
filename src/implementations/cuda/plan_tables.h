// What a plan's image holds of the tables of the mask and the score: values, trees of their ranges, and
// views.
#pragma once

#include <cstddef>

#include "chorale/problem.h"
#include "implementations/cuda/driver.h"
#include "kernels/params.h"

namespace chorale::cuda {

bool has_tables(const Problem& problem);
// Bytes of values and trees.
std::size_t room_for_tables(const Problem& problem);
void write_tables(const Problem& problem, std::byte* to);
// The views of them where they lie at `tables` on the device; room for kernels::max_tables.
void write_table_views(const Problem& problem, DevicePointer tables, kernels::TableView* to);

}  // namespace chorale::cuda
