#include "implementations/cuda/block_order.h"

#include <functional>
#include <vector>

namespace chorale::cuda {
namespace {

// A third of the L2 cache, which keeps what two halves of the card read in both of its halves.
constexpr std::int64_t cache_bytes = 16 << 20;

std::int32_t longest(std::span<const CostedBlock> blocks) {
  std::int32_t most = 1;
  for (const CostedBlock& block : blocks) most = std::max(most, block.cost);
  return most;
}

kernels::RowBlock* write_longest_first(std::span<const CostedBlock> blocks, kernels::RowBlock* to) {
  LongestFirst order(longest(blocks));
  for (const CostedBlock& block : blocks) order.count(block.cost);
  order.end_count();
  for (const CostedBlock& block : blocks) to[order.place(block.cost)] = block.block;
  return to + blocks.size();
}

}  // namespace

void write_in_order(std::span<const CostedBlock> blocks, const Batch& batch, std::int64_t row_bytes,
                    kernels::RowBlock* to) {
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
  if (keys * row_bytes <= cache_bytes) {
    write_longest_first(blocks, to);
    return;
  }
  std::ranges::stable_sort(sequences, std::greater(), &SequenceBlocks::keys);
  std::vector<CostedBlock> together;
  std::int64_t bytes = 0;
  for (const SequenceBlocks& sequence : sequences) {
    bytes += sequence.keys * row_bytes;
    if (bytes > cache_bytes && !together.empty()) {
      to = write_longest_first(together, to);
      together.clear();
      bytes = sequence.keys * row_bytes;
    }
    together.insert(together.end(), sequence.blocks.begin(), sequence.blocks.end());
  }
  write_longest_first(together, to);
}

int heads_together(std::span<const CostedBlock> blocks, int kv_heads, int multiprocessors) {
  std::int64_t all = 1;
  for (const CostedBlock& block : blocks) all += block.cost;
  return static_cast<int>(std::clamp<std::int64_t>(
      (longest(blocks) * static_cast<std::int64_t>(multiprocessors) + all - 1) / all, 1, kv_heads));
}

}  // namespace chorale::cuda
