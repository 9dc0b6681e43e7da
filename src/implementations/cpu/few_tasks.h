// The work list of sequences of few rows (a decode).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// Some chunks of a sequence under some KV heads. Heads are together where they can be, since their rows are
// neighbours in memory.
struct FewTask {
  int sequence, first_head, heads;
  std::int64_t first_chunk, chunks;
  std::size_t state = 0;  // where not whole: of its first head
};

struct FewTasks {
  std::vector<int> sequences;  // of few rows, the longest first
  // A task is a sequence. Else it is one chunk, or one of some heads, and states wait to be merged in order:
  // that of chunk c and head h of sequences[i] is first_state[i] + c * kv_heads + h.
  bool whole = true;
  std::vector<FewTask> tasks;
  std::vector<std::size_t> first_state;
  std::size_t states = 0;
};
FewTasks few_tasks(const TiledPlan& plan);

}  // namespace chorale::tiled
