// A decode's row blocks cut into items: which chunks of keys one block of threads takes in turn. That changes
// no bit. (The bench of the kernel includes this too.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/params.h"

namespace chorale::cuda {

struct Split {
  std::vector<kernels::SplitItem> items;
  // Of all row blocks, whatever way they are cut: so many items there can be, and slots.
  int chunks = 0, most_slots = 0;
};

// A row block with all chunks of its keys.
inline kernels::SplitItem whole_item(const kernels::Sequence& keys, int sequence, int first_row,
                                     int positions, int chunk) {
  kernels::SplitItem item{};
  item.sequence = sequence;
  item.q_row = keys.q_first + first_row;
  item.positions = std::min(positions, keys.q_len - first_row);
  item.q_position = keys.kv_len - keys.q_len + first_row;
  item.kv_first = keys.kv_first;
  item.kv_len = keys.kv_len;
  item.chunks = std::max(1, (keys.kv_len + chunk - 1) / chunk);
  return item;
}

// States that are written, read again and merged by others cost time at the end, when nothing is left to do
// beside them. So the first chunks of a row block are one item where that leaves no multiprocessor idle:
// - all chunks, where everything runs at once and the row block is little more than a multiprocessor's share:
//   a few multiprocessors less still reach the memory's bandwidth (an H200's 132: 128 do, 112 do not).
// - else half a share of what is left, so that items become smaller towards the end, and single chunks are
// the
//   last.
// `blocks`: longest first.
inline Split split(const std::vector<kernels::SplitItem>& blocks, int kv_heads, int multiprocessors) {
  Split result;
  for (const kernels::SplitItem& block : blocks) {
    result.chunks += block.chunks;
    if (block.chunks > 1) result.most_slots += block.chunks;
  }
  const std::int64_t heads = kv_heads, all = heads * result.chunks;
  const bool at_once = heads * static_cast<std::int64_t>(blocks.size()) <= multiprocessors;
  const auto is_share = [&](int chunks) {
    return at_once && std::int64_t{10} * multiprocessors * chunks <= 11 * all;
  };
  std::vector<kernels::SplitItem>& items = result.items;
  items.reserve(blocks.size());
  std::int64_t left = all;
  int slots = 0, counters = 0;
  std::size_t states = 0;
  for (const kernels::SplitItem& block : blocks) {
    kernels::SplitItem& first = items.emplace_back(block);
    const std::int64_t halves = std::int64_t{2} * multiprocessors;
    if (left < halves * block.chunks && !is_share(block.chunks))
      first.chunks = std::max(1, static_cast<int>(left / halves));
    left -= heads * block.chunks;
    first.states = 1 + block.chunks - first.chunks;
    states += static_cast<std::size_t>(first.states);
    first.first_slot = slots;
    first.first_counter = counters;
    if (first.states == 1) continue;
    slots += first.states;
    counters += (first.states - 2) / kernels::merge_step + 1;
  }
  items.reserve(states);
  for (std::size_t i = 0; i < blocks.size(); ++i)
    for (int state = 1; state < items[i].states; ++state) {
      kernels::SplitItem& one = items.emplace_back(items[i]);
      one.first_chunk = items[i].chunks + state - 1;
      one.chunks = 1;
      one.state = state;
    }
  return result;
}

}  // namespace chorale::cuda
