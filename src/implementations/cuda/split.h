// A decode's row blocks cut into items: which chunks of keys one block of threads takes in turn. That changes
// no bit. (The bench of the kernel includes this too.)
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/params.h"

namespace chorale::cuda {

// How much there is to cut.
struct SplitSizes {
  int blocks = 0, chunks = 0;
  int most_slots =
      0;  // of partial states, whatever way the row blocks are cut; there are at most `chunks` items
  void add(int chunks_of_block) {
    ++blocks;
    chunks += chunks_of_block;
    if (chunks_of_block > 1) most_slots += chunks_of_block;
  }
};

// Blocks of threads that share an item: two where single ones would leave three quarters of the
// multiprocessors idle. (At half, docs/cuda_decode.md, few rows win 2% and many lose up to 50%.)
inline int cluster_for(const SplitSizes& sizes, int kv_heads, int multiprocessors) {
  return std::int64_t{4} * kv_heads * sizes.chunks <= multiprocessors ? 2 : 1;
}

inline int chunks_of(int keys, int chunk) { return std::max(1, (keys + chunk - 1) / chunk); }

// Makes `item` a row block with all chunks of its keys, in its place: a copy of what was just written in
// pieces has to wait for it.
inline void set_whole_item(kernels::SplitItem& item, const kernels::Sequence& keys, int sequence,
                           int first_row, int positions, int chunk) {
  item.sequence = sequence;
  item.q_row = keys.q_first + first_row;
  item.positions = std::min(positions, keys.q_len - first_row);
  item.q_position = keys.kv_len - keys.q_len + first_row;
  item.kv_first = keys.kv_first;
  item.kv_len = keys.kv_len;
  item.first_chunk = 0;
  item.chunks = chunks_of(keys.kv_len, chunk);
  item.state = 0;
}

// Writes the items and says how many there are. `set_whole(item, i)` makes one of row block i, longest first.
// A multiprocessor here is as many as share an item.
//
// States that are written, read again and merged by others cost time at the end, when nothing is left to do
// beside them. So the first chunks of a row block are one item where that leaves no multiprocessor idle:
// - all chunks, where everything runs at once and the row block is little more than a multiprocessor's share:
//   a few multiprocessors less still reach the memory's bandwidth (an H200's 132: 128 do, 112 do not).
// - else half a share of what is left, so that items become smaller towards the end, and single chunks are
//   the last.
template <class F>
int split(const SplitSizes& sizes, int kv_heads, int multiprocessors, F&& set_whole,
          kernels::SplitItem* items) {
  const std::int64_t heads = kv_heads, all = heads * sizes.chunks;
  const bool at_once = heads * sizes.blocks <= multiprocessors;
  const auto is_share = [&](int chunks) {
    return at_once && std::int64_t{10} * multiprocessors * chunks <= 11 * all;
  };
  std::int64_t left = all;
  int slots = 0, counters = 0;
  kernels::SplitItem* next = items + sizes.blocks;  // single chunks come after all first items
  for (int i = 0; i < sizes.blocks; ++i) {
    kernels::SplitItem& first = items[i];
    set_whole(first, i);
    const int chunks = first.chunks;
    const std::int64_t halves = std::int64_t{2} * multiprocessors;
    if (left < halves * chunks && !is_share(chunks))
      first.chunks = std::max(1, static_cast<int>(left / halves));
    left -= heads * chunks;
    first.states = 1 + chunks - first.chunks;
    first.first_slot = slots;
    first.first_counter = counters;
    if (first.states == 1) continue;
    slots += first.states;
    counters += (first.states - 2) / kernels::merge_step + 1;
    for (int state = 1; state < first.states; ++state, ++next) {
      *next = first;
      next->first_chunk = first.chunks + state - 1;
      next->chunks = 1;
      next->state = state;
    }
  }
  return static_cast<int>(next - items);
}

}  // namespace chorale::cuda
