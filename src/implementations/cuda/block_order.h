// In which order the row blocks of a launch are taken, by whichever block of threads is free. It changes the
// speed only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chorale/batch.h"
#include "kernels/params.h"

namespace chorale::cuda {

struct CostedBlock {
  kernels::RowBlock block;
  std::int32_t cost;  // keys that it may see
};

// Longest first, in steps of a 256th of the longest; equal ones in their order. So a long one is not left for
// the end.
std::vector<kernels::RowBlock> longest_first(std::span<const CostedBlock> blocks);

// The same within some sequences at a time, longer ones before shorter ones: so many whose keys and values
// under one KV head, `row_bytes` for each key, stay in the L2 cache beside what passes through it. `blocks`:
// those of one sequence together, sequences ascending.
std::vector<kernels::RowBlock> longest_first_by_sequences(std::span<const CostedBlock> blocks,
                                                          const Batch& batch, std::int64_t row_bytes);

// Heads follow each other too, so that one's keys stay in the cache. How many of the last ones are taken
// together, so that work for all multiprocessors is left when the last long block begins: at least 1.
int heads_together(std::span<const CostedBlock> blocks, int kv_heads, int multiprocessors);

}  // namespace chorale::cuda
