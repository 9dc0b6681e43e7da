// A batch cut into work for a GPU: first how much there is, then, where room was made for it, what.
//
// Sequences of few query rows are split over their keys and go to the decode kernel; the others to the
// forward kernel, whose 8-bit keys are widened before. Both give the same bits.
#pragma once

#include <vector>

#include "chorale/batch.h"
#include "chorale/problem.h"
#include "implementations/cuda/kernel_key.h"
#include "implementations/cuda/order.h"
#include "implementations/cuda/split.h"
#include "kernels/params.h"

namespace chorale::cuda {

struct WorkSizes {
  struct Part {
    int blocks = 0;
    int positions = 1;  // of a row block
    int most_keys = 0;
  };
  Part forward, decode;
  SplitSizes split;   // of the decode's row blocks
  int cluster = 1;    // blocks of threads that share an item of the decode
  int key_tiles = 0;  // to widen
  DecodeShape decode_shape() const { return {decode.positions, cluster}; }
};

// For so many multiprocessors. A decode's row blocks have at least so many positions, and clusters are of so
// many blocks of threads, as a plan that is updated has them; 0 chooses by how much there is to do.
WorkSizes measure_work(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
                       DecodeShape least = {1, 0});

// The kernels that do it.
std::vector<KernelKey> kernel_keys(const WorkSizes& work, const Problem& problem, const Order& order,
                                   int page_size);

// Where the work is written, with room for what was measured.
struct WorkList {
  kernels::RowBlock *forward, *decode;  // in the order in which they are taken (block_order.h)
  kernels::SplitItem* split_items;      // room for WorkSizes::split.chunks
  kernels::KeyTile* key_tiles;          // all of one sequence, then all of another
};

struct WorkCounts {
  int split_items;
  int heads_together;  // of the forward (block_order.h)
};

// For so many multiprocessors, which decides who does what only.
WorkCounts write_work(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
                      const WorkSizes& work, const WorkList& to);

// What kernels know of a sequence.
inline kernels::Sequence device_sequence(const Batch& batch, int sequence) {
  const auto s = static_cast<std::size_t>(sequence);
  return {batch.cu_seqlens_q[s], batch.q_len(sequence), batch.is_paged() ? 0 : batch.cu_seqlens_k[s],
          batch.kv_len(sequence)};
}

}  // namespace chorale::cuda
