// The mask and score programs, emitted by the host before the sources (src/mask/emit_cuda.h):
//     bool program_visible(const TableView*, b, h, q, k)
//     float program_score(const TableView*, score, b, h, q, k)
//     int program_coverage(const TableView*, b, h first and last, q first and last, k first and last)
// and what kernels ask of them.
#pragma once

#include "config.cuh"
#include "params.h"

namespace chorale::kernels {

enum Coverage { empty = 0, partial = 1, full = 2 };

// How much of a tile of keys the rows of a block see.
struct RowRange {
  int sequence, head_first, head_last, q_first, q_last;  // logical positions
  int kv_len;
};
__device__ __forceinline__ int tile_coverage(const ForwardParams& params, const RowRange& rows, int tile) {
  const int k_first = tile * Config::tile, k_end = k_first + Config::tile;
  int coverage = k_end <= rows.kv_len ? full : partial;
  if constexpr (Config::masked) {
    const int k_last = min(k_end, rows.kv_len) - 1;
    const int seen = program_coverage(params.tables, rows.sequence, rows.head_first, rows.head_last,
                                      rows.q_first, rows.q_last, k_first, k_last);
    coverage = min(coverage, seen);
  }
  return coverage;
}

}  // namespace chorale::kernels
