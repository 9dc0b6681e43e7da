// Who does what: row blocks are taken one after another, longest first, by whichever block of threads is
// free. Nothing here changes a bit of the result.
#pragma once

#include "config.cuh"
#include "params.h"
#include "ptx.cuh"
#include "visibility.cuh"

namespace chorale::kernels {

// One row block under one KV head.
struct Item {
  static constexpr int none = -1;   // there are no more
  static constexpr int pause = -2;  // none for now: what has begun may end
  int sequence;                     // or one of these
  int kv_head;
  int q_row;       // its first row of q, out and lse
  int positions;   // query positions in use, at most Config::positions
  int q_position;  // logical position of the first
  int kv_first;    // packed keys: row of the sequence's first key
  int kv_len;
  bool careful;  // values that are not finite are taken out of the products (scrub)

  __device__ RowRange rows(int first_query_head) const {
    const int head = first_query_head + kv_head * Config::group;
    return {sequence, head, head + Config::group - 1, q_position, q_position + positions - 1, kv_len};
  }
};

// Item `index` of the launch. Heads come one after another, so that one's keys stay in the L2 cache; the last
// ones together, their longest row blocks first, so that no long one is left for the end.
__device__ __forceinline__ Item find_item(const ForwardParams& params, int index) {
  const PlanView& plan = params.plan;
  const int blocks = plan.counts->row_blocks;
  if (index >= blocks * params.heads) return {Item::none};
  const int together = min(plan.counts->heads_together, params.heads), alone = params.heads - together;
  const int rest = index - alone * blocks;
  const int head = rest < 0 ? index / blocks : alone + rest % together;
  const RowBlock block = plan.row_blocks[rest < 0 ? index % blocks : rest / together];
  const Sequence sequence = plan.sequences[block.sequence];
  return {block.sequence,
          head,
          sequence.q_first + block.first,
          min(Config::positions, sequence.q_len - block.first),
          sequence.kv_len - sequence.q_len + block.first,
          sequence.kv_first,
          sequence.kv_len,
          false};
}

// Where the key at a position of the sequence lies: page and slot.
struct SlotPlace {
  int page, slot;
};
__device__ __forceinline__ SlotPlace find_slot(const PlanView& plan, const Item& item, int position) {
  if constexpr (!Config::paged) return {0, item.kv_first + position};
  const int* table =
      plan.block_table + static_cast<long long>(item.sequence) * plan.counts->block_table_stride;
  constexpr int size = Config::paged ? Config::page_size : 1;
  return {table[position / size], position % size};
}

// The last block of threads to finish leaves the counters as it found them.
__device__ __forceinline__ void leave(const PlanView& plan) {
  __threadfence();
  if (atomicAdd(plan.next_item + 1, 1) == static_cast<int>(gridDim.x) - 1) {
    plan.next_item[0] = 0;
    plan.next_item[1] = 0;
  }
}

// The tiles that a row block sees, in ascending order, found by a whole warp: 32 are classified at once, and
// before them, where there are more, 32 groups of 32.
class VisibleTiles {
 public:
  __device__ VisibleTiles(const ForwardParams& params, const RowRange& rows)
      : params_(params), rows_(rows), tiles_((rows.kv_len + Config::tile - 1) / Config::tile) {
    advance();
  }
  __device__ bool done() const { return seen_ == 0; }
  __device__ int tile() const { return first_ + __ffs(seen_) - 1; }
  __device__ bool is_partial() const { return (whole_ & seen_ & -seen_) == 0; }
  __device__ void next() {
    seen_ &= seen_ - 1;
    if (seen_ == 0) {
      first_ += 32;
      advance();
    }
  }

 private:
  __device__ void advance() {
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (; first_ < tiles_; first_ += 32) {
      if (Config::masked && tiles_ > 32) {
        const int group = first_ / 32;
        if (group % 32 == 0) groups_ = __ballot_sync(~0u, coverage(first_ + 32 * lane, 32) != empty);
        if ((groups_ >> group % 32 & 1) == 0) continue;
      }
      const int found = coverage(first_ + lane, 1);
      seen_ = __ballot_sync(~0u, found != empty);
      whole_ = __ballot_sync(~0u, found == full);
      if (seen_ != 0) return;
    }
  }
  __device__ int coverage(int tile, int tiles) const {
    return tile < tiles_ ? tile_coverage(params_.plan, rows_, tile, tiles) : static_cast<int>(empty);
  }

  const ForwardParams& params_;
  RowRange rows_;
  int tiles_;
  int first_ = 0;
  u32 groups_ = 0;  // of the last 32 groups that were looked at, those that may be seen
  u32 seen_ = 0, whole_ = 0;
};

}  // namespace chorale::kernels
