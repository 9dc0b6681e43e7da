#include "implementations/cuda/block_order.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "implementations/cuda/work_list.h"

namespace chorale::cuda {
namespace {

constexpr int rows = 128;  // of a block
constexpr std::int64_t row_bytes = 512, cache_bytes = 16 << 20;

Batch causal_batch(const std::vector<std::int32_t>& lengths) {
  Batch batch;
  batch.cu_seqlens_q = {0};
  for (const std::int32_t length : lengths) batch.cu_seqlens_q.push_back(batch.cu_seqlens_q.back() + length);
  batch.cu_seqlens_k = batch.cu_seqlens_q;
  return batch;
}
std::vector<CostedBlock> causal_blocks(const std::vector<std::int32_t>& lengths) {
  std::vector<CostedBlock> blocks;
  for (int s = 0; s < static_cast<int>(lengths.size()); ++s)
    for (int first = 0; first < lengths[static_cast<std::size_t>(s)]; first += rows)
      blocks.push_back({{s, first}, std::min(first + rows, lengths[static_cast<std::size_t>(s)])});
  return blocks;
}

std::vector<kernels::RowBlock> in_order(const std::vector<CostedBlock>& blocks,
                                        const std::vector<std::int32_t>& lengths) {
  std::vector<kernels::RowBlock> order(blocks.size());
  write_in_order(blocks, causal_batch(lengths), row_bytes, order.data());
  return order;
}

TEST(BlockOrder, LongestFirstAndEqualOnesInTheirOrder) {
  const std::vector<CostedBlock> blocks = {
      {{0, 0}, 100}, {{1, 0}, 5000}, {{1, 128}, 5000}, {{2, 0}, 1}, {{3, 0}, 2500}};
  std::vector<int> sequences, firsts;
  for (const kernels::RowBlock& block : in_order(blocks, {5000, 5000, 5000, 5000})) {
    sequences.push_back(block.sequence);
    firsts.push_back(block.first);
  }
  EXPECT_EQ(sequences, (std::vector{1, 1, 3, 0, 2}));
  EXPECT_EQ(firsts, (std::vector{0, 128, 0, 0, 0}));
}

// Every block once; no sequence begins before those of the sections before it are all there; no section of
// several sequences has more keys than the cache holds.
TEST(BlockOrder, SequencesFollowEachOtherWhereTheCacheIsTooSmall) {
  const std::vector<std::int32_t> lengths = {700, 20000, 9000, 64, 12345, 20000, 40000, 1, 9000, 3000};
  const std::vector<CostedBlock> blocks = causal_blocks(lengths);
  const std::vector<kernels::RowBlock> order = in_order(blocks, lengths);
  ASSERT_EQ(order.size(), blocks.size());
  std::set<std::pair<int, int>> all;
  std::map<int, std::size_t> begins, ends;
  for (std::size_t i = 0; i < order.size(); ++i) {
    EXPECT_TRUE(all.insert({order[i].sequence, order[i].first}).second);
    begins.try_emplace(order[i].sequence, i);
    ends[order[i].sequence] = i;
  }
  int sections = 0;
  for (std::size_t i = 0; i < order.size(); ++sections) {
    // A section ends where all sequences that have begun have ended.
    std::set<int> begun;
    std::size_t end = i;
    for (std::size_t at = i; at <= end; ++at) {
      begun.insert(order[at].sequence);
      end = std::max(end, ends[order[at].sequence]);
      if (at > i) {
        const auto cost = [&](std::size_t n) { return order[n].first; };
        EXPECT_LE(cost(at), cost(at - 1) + 40000 / 255 + rows) << at;
      }
    }
    std::int64_t keys = 0;
    for (const int sequence : begun) keys += lengths[static_cast<std::size_t>(sequence)];
    EXPECT_TRUE(begun.size() == 1 || keys * row_bytes <= cache_bytes) << keys;
    i = end + 1;
  }
  EXPECT_GE(sections, 4);
  EXPECT_EQ(order.front().sequence, 6);
}

// With the last heads together, there is work for every multiprocessor for as long as their longest block
// takes.
TEST(BlockOrder, TheLastHeadsTogetherFillTheCard) {
  constexpr int kv_heads = 16, multiprocessors = 132;
  const auto of = [&](const std::vector<std::int32_t>& lengths) {
    return heads_together(causal_blocks(lengths), kv_heads, multiprocessors);
  };
  EXPECT_EQ(of({16384}), 3);
  EXPECT_EQ(of({512, 512}), kv_heads);
  EXPECT_EQ(of(std::vector<std::int32_t>(200, 512)), 1);
  EXPECT_EQ(of({}), kv_heads);
}

// Where single blocks of threads would leave three quarters of a card idle two share an item. A plan that is
// updated keeps what it has: a captured graph has one launch.
TEST(Clusters, WhereThereAreFewChunks) {
  const Problem problem{.query_heads = 32, .kv_heads = 8, .head_dim = 128, .dtype = DType::bfloat16};
  const Order order = order_of(128, 128);
  const auto cluster = [&](int sequences, std::int32_t keys, int kept) {
    Batch batch;
    batch.cu_seqlens_q = batch.cu_seqlens_k = {0};
    for (int s = 0; s < sequences; ++s) {
      batch.cu_seqlens_q.push_back(s + 1);
      batch.cu_seqlens_k.push_back(batch.cu_seqlens_k.back() + keys);
    }
    const WorkSizes work = measure_work(problem, batch, order, 132, {1, kept});
    EXPECT_EQ(kernel_keys(work, problem, order, 0).at(0).cluster, work.cluster);
    return work.cluster;
  };
  EXPECT_EQ(cluster(1, 4 * order.chunk, 0), 2);  // 32 chunks under all heads
  EXPECT_EQ(cluster(1, 4 * order.chunk + 1, 0), 1);
  EXPECT_EQ(cluster(4, 10, 0), 2);
  EXPECT_EQ(cluster(5, 10, 0), 1);
  EXPECT_EQ(cluster(1, 100, 1), 1);
  EXPECT_EQ(cluster(256, 10000, 2), 2);
}

}  // namespace
}  // namespace chorale::cuda
