// WorkList: a batch cut into work for a GPU.
#pragma once

#include <vector>

#include "chorale/batch.h"
#include "chorale/problem.h"
#include "implementations/cuda/kernel_key.h"
#include "implementations/cuda/order.h"
#include "implementations/cuda/split.h"
#include "kernels/params.h"

namespace chorale::cuda {

// Sequences of few query rows are split over their keys and go to the decode kernel; the others to the
// forward kernel, whose 8-bit keys are widened before. Both give the same bits.
struct WorkList {
  struct Part {
    std::vector<kernels::RowBlock> row_blocks;  // in the order in which they are taken
    Split split;                                // decode only
    int positions = 1;                          // of a row block
    int heads_together = 1;                     // forward only: block_order.h
  };
  Part forward, decode;
  std::vector<kernels::KeyTile> key_tiles;  // to widen: all of one sequence, then all of another
};

// What kernels know of a sequence.
kernels::Sequence device_sequence(const Batch& batch, int sequence);

// For so many multiprocessors, which decides who does what only. A decode's row blocks have at least so many
// positions.
WorkList make_work_list(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
                        int least_decode_positions = 1);

// The kernels that do it.
std::vector<KernelKey> kernel_keys(const WorkList& work, const Problem& problem, const Order& order,
                                   int page_size);

}  // namespace chorale::cuda
