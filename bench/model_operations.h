// Where a training step's time goes, one operation at a time.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace chorale::bench {

// The products of one linear layer of each shape, on `rows` rows as a layer runs them, and the row-wise
// operations. `peak` in operations a second.
void print_operations(const ModelConfig& config, std::int64_t rows, int threads, double peak);

}  // namespace chorale::bench
