#include "implementations/cuda/block_order.h"

#include <algorithm>
#include <array>

namespace chorale::cuda {
namespace {

// A third of the L2 cache, which keeps what two halves of the card read in both of its halves.
constexpr std::int64_t cache_bytes = 16 << 20;

std::int32_t longest(std::span<const CostedBlock> blocks) {
  std::int32_t most = 1;
  for (const CostedBlock& block : blocks) most = std::max(most, block.cost);
  return most;
}

void append_longest_first(std::span<const CostedBlock> blocks, std::vector<kernels::RowBlock>& to) {
  constexpr int steps = 256;
  const std::int32_t most = longest(blocks);
  const float scale = static_cast<float>(steps - 1) / static_cast<float>(most);
  const auto step = [&](const CostedBlock& block) {
    return std::min<std::size_t>(static_cast<std::size_t>(static_cast<float>(most - block.cost) * scale),
                                 steps - 1);
  };
  std::array<std::size_t, steps + 1> first{to.size()};
  for (const CostedBlock& block : blocks) ++first[step(block) + 1];
  for (std::size_t i = 1; i <= steps; ++i) first[i] += first[i - 1];
  to.resize(to.size() + blocks.size());
  for (const CostedBlock& block : blocks) to[first[step(block)]++] = block.block;
}

}  // namespace

std::vector<kernels::RowBlock> longest_first(std::span<const CostedBlock> blocks) {
  std::vector<kernels::RowBlock> order;
  append_longest_first(blocks, order);
  return order;
}

std::vector<kernels::RowBlock> longest_first_by_sequences(std::span<const CostedBlock> blocks,
                                                          const Batch& batch, std::int64_t row_bytes) {
  struct SequenceBlocks {
    std::span<const CostedBlock> blocks;
    std::int32_t keys;
  };
  std::vector<SequenceBlocks> sequences;
  std::int64_t keys = 0;
  for (std::size_t at = 0, end = 0; at < blocks.size(); at = end) {
    const int sequence = blocks[at].block.sequence;
    while (end < blocks.size() && blocks[end].block.sequence == sequence) ++end;
    sequences.push_back({blocks.subspan(at, end - at), batch.kv_len(sequence)});
    keys += sequences.back().keys;
  }
  if (keys * row_bytes <= cache_bytes) return longest_first(blocks);

  std::ranges::stable_sort(sequences, std::greater(), &SequenceBlocks::keys);
  std::vector<kernels::RowBlock> order;
  order.reserve(blocks.size());
  std::vector<CostedBlock> together;
  std::int64_t bytes = 0;
  for (const SequenceBlocks& sequence : sequences) {
    bytes += sequence.keys * row_bytes;
    if (bytes > cache_bytes && !together.empty()) {
      append_longest_first(together, order);
      together.clear();
      bytes = sequence.keys * row_bytes;
    }
    together.insert(together.end(), sequence.blocks.begin(), sequence.blocks.end());
  }
  append_longest_first(together, order);
  return order;
}

int heads_together(std::span<const CostedBlock> blocks, int kv_heads, int multiprocessors) {
  std::int64_t all = 1;
  for (const CostedBlock& block : blocks) all += block.cost;
  return static_cast<int>(std::clamp<std::int64_t>(
      (longest(blocks) * static_cast<std::int64_t>(multiprocessors) + all - 1) / all, 1, kv_heads));
}

}  // namespace chorale::cuda
