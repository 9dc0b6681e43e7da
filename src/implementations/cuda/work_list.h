// WorkList: a batch cut into work for a GPU.
#pragma once

#include <vector>

#include "chorale/batch.h"
#include "chorale/problem.h"
#include "kernels/params.h"

namespace chorale::cuda {

// Sequences of few query rows are split over their keys and go to the decode kernel; the others to the
// forward kernel. Both give the same bits.
struct WorkList {
  struct Part {
    std::vector<kernels::RowBlock> row_blocks;    // longest first
    std::vector<kernels::SplitItem> split_items;  // decode only
    int positions = 1;                            // of a row block
    int slots = 0;                                // chunks of all row blocks of more than one
  };
  Part forward, decode;
};

// A decode's row blocks have at least so many positions.
WorkList make_work_list(const Problem& problem, const Batch& batch, int chunk,
                        int least_decode_positions = 1);

}  // namespace chorale::cuda
