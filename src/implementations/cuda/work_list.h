// WorkList: a batch cut into work for a GPU.
#pragma once

#include <vector>

#include "chorale/batch.h"
#include "chorale/problem.h"
#include "implementations/cuda/split.h"
#include "kernels/params.h"

namespace chorale::cuda {

// Sequences of few query rows are split over their keys and go to the decode kernel; the others to the
// forward kernel. Both give the same bits.
struct WorkList {
  struct Part {
    std::vector<kernels::RowBlock> row_blocks;  // longest first
    Split split;                                // decode only
    int positions = 1;                          // of a row block
  };
  Part forward, decode;
};

// What kernels know of a sequence.
kernels::Sequence device_sequence(const Batch& batch, int sequence);

// For so many multiprocessors, which decides who does what only. A decode's row blocks have at least so many
// positions.
WorkList make_work_list(const Problem& problem, const Batch& batch, int chunk, int multiprocessors,
                        int least_decode_positions = 1);

}  // namespace chorale::cuda
