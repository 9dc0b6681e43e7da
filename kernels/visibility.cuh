// What the mask and score programs say of keys. The programs themselves, program.cuh, are written by the host
// (src/mask/emit_cuda.h); params.h has its functions.
#pragma once

#include "config.cuh"
#include "params.h"
#include "program.cuh"
#include "softmax.cuh"

namespace chorale::kernels {

enum Coverage { empty = 0, partial = 1, full = 2 };

// How much of a tile of keys the rows of a block see.
struct RowRange {
  int sequence, head_first, head_last, q_first, q_last;  // logical positions
  int kv_len;
};
// How much of `tiles` tiles from `tile` on, of which the first begins before the sequence's end.
__device__ __forceinline__ int tile_coverage(const PlanView& plan, const RowRange& rows, int tile,
                                             int tiles = 1) {
  const int k_first = tile * Config::tile, k_end = k_first + tiles * Config::tile;
  int coverage = k_end <= rows.kv_len ? full : partial;
  if constexpr (Config::masked) {
    const int k_last = min(k_end, rows.kv_len) - 1;
    const int seen = program_coverage(plan.tables, rows.sequence, rows.head_first, rows.head_last,
                                      rows.q_first, rows.q_last, k_first, k_last);
    coverage = min(coverage, seen);
  }
  return coverage;
}

// A row of a row block as the programs name it.
struct RowName {
  int h, q;
  __device__ __forceinline__ RowName(const ForwardParams& params, int kv_head, int q_position, int row)
      : h(params.first_query_head + kv_head * Config::group + row % Config::group),
        q(q_position + row / Config::group) {}
};

__device__ __forceinline__ bool is_visible(const ForwardParams& params, int sequence, RowName row, int k) {
  const TableView* tables = params.plan.tables;
  return program_visible(tables, sequence, row.h, row.q, k, program_rows(tables, sequence, row.h, row.q),
                         program_keys(tables, sequence, k));
}

// The score of one query and key as the softmax takes it: through the score program, and -infinity where the
// row does not see the key, which may be beyond the sequence's end: the program says anything there, where
// it does no harm. A tile that is not `partial` is seen whole. key(): the key's values of the programs.
template <class Key>
__device__ __forceinline__ float finished_score(const ForwardParams& params, float score, int sequence,
                                                RowName row, int k, bool is_partial, const RowValues& values,
                                                Key key) {
  const TableView* tables = params.plan.tables;
  if constexpr (Config::scored)
    score = program_score(tables, score, params.scale, sequence, row.h, row.q, k, values, key());
  if constexpr (Config::masked)
    if (is_partial && !program_visible(tables, sequence, row.h, row.q, k, values, key())) return -infinity;
  return score;
}

}  // namespace chorale::kernels
