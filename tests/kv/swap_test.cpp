// Swapping sequences out and in: bits, books, and what happens to pages that others share.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "chorale/kv_cache.h"

namespace chorale {
namespace {

using testing::HasSubstr;
using Tokens = std::vector<std::int32_t>;

KvCache cache_of_two_layers(std::int64_t pages = 6) {
  return KvCache::create(
             {.layers = 2, .kv_heads = 2, .head_dim = 3, .value_head_dim = 5, .page_size = 4, .pages = pages})
      .value();
}

// Appends `count` tokens whose elements' bits count up from `first`.
void append(KvCache& cache, KvCache::SequenceId id, std::int64_t count, std::uint16_t first) {
  const auto slots = cache.append(id, count).value();
  for (int layer = 0; layer < 2; ++layer) {
    Tensor k = Tensor::zeros(DType::bfloat16, {count, 2, 3}),
           v = Tensor::zeros(DType::bfloat16, {count, 2, 5});
    for (const Tensor& rows : {k, v})
      for (bfloat16& element : rows.as<bfloat16>()) element.bits = first++;
    ASSERT_TRUE(cache.store(layer, slots, k, v).is_ok());
  }
}

// All bits of a sequence in logical order.
std::vector<std::byte> content(const KvCache& cache, KvCache::SequenceId id) {
  std::vector<std::byte> bytes;
  const auto table = cache.block_table(id).value();
  for (int layer = 0; layer < 2; ++layer) {
    for (const TensorView& pool : {cache.keys(layer), cache.values(layer)}) {
      const std::int64_t token_bytes = pool.stride[1] * 2;
      for (std::int64_t t = 0; t < cache.length(id).value(); ++t) {
        const auto* row = static_cast<const std::byte*>(pool.data) +
                          (table[static_cast<std::size_t>(t / 4)] * 4 + t % 4) * token_bytes;
        bytes.insert(bytes.end(), row, row + token_bytes);
      }
    }
  }
  return bytes;
}

TEST(Swap, TheSameBitsComeBackInOtherPages) {
  KvCache cache = cache_of_two_layers();
  const auto a = cache.add();
  append(cache, a, 10, 1);
  const auto before = content(cache, a);
  const auto pages_before = cache.block_table(a).value();
  const SwappedSequence swapped = cache.swap_out(a).value();
  EXPECT_EQ(swapped.length(), 10);
  EXPECT_EQ(swapped.bytes(), before.size());
  EXPECT_EQ(cache.used_pages(), 0);
  EXPECT_EQ(cache.length(a).status().code(), Code::not_found);

  const auto other = cache.add();
  append(cache, other, 12, 5000);  // overwrites the pages that it had
  const auto back = cache.swap_in(swapped).value();
  EXPECT_EQ(content(cache, back), before);
  EXPECT_NE(cache.block_table(back).value(), pages_before);
  EXPECT_EQ(cache.used_pages(), 6);
  append(cache, back, 2, 9000);
  EXPECT_EQ(cache.length(back).value(), 12);
}

TEST(Swap, AFullPoolRefusesAndChangesNothing) {
  KvCache cache = cache_of_two_layers(3);
  const auto a = cache.add();
  append(cache, a, 9, 1);
  const auto before = content(cache, a);
  const SwappedSequence swapped = cache.swap_out(a).value();
  const auto other = cache.add();
  append(cache, other, 1, 77);
  const auto refused = cache.swap_in(swapped);
  EXPECT_EQ(refused.status().code(), Code::resource_exhausted);
  EXPECT_THAT(refused.status().message(), HasSubstr("swap in 9 tokens: needs 3 pages, 2 of 3 are free"));
  EXPECT_EQ(cache.free_pages(), 2);
  ASSERT_TRUE(cache.free(other).is_ok());
  EXPECT_EQ(content(cache, cache.swap_in(swapped).value()), before);
}

TEST(Swap, SharedPagesStayWithTheOthers) {
  KvCache cache = cache_of_two_layers();
  const auto a = cache.add();
  append(cache, a, 6, 1);
  const auto b = cache.fork(a).value();
  const auto before = content(cache, a);
  const SwappedSequence swapped = cache.swap_out(b).value();
  EXPECT_EQ(cache.used_pages(), 2);
  EXPECT_EQ(cache.references(cache.block_table(a).value()[0]), 1);
  append(cache, a, 2, 500);
  const auto back = cache.swap_in(swapped).value();
  EXPECT_EQ(content(cache, back), before) << "what a wrote meanwhile is not b's";
  EXPECT_EQ(cache.used_pages(), 4);
}

TEST(Swap, PublishedPagesAreSharedAgain) {
  KvCache cache = cache_of_two_layers();
  Tokens tokens(10);
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto a = cache.add(3);
  append(cache, a, 10, 1);
  ASSERT_TRUE(cache.publish(a, tokens).is_ok());
  const auto before = content(cache, a);
  const auto pages_before = cache.block_table(a).value();
  const SwappedSequence swapped = cache.swap_out(a).value();
  const auto other = cache.add_with_prefix(tokens, 3);
  EXPECT_EQ(other.tokens, 8);

  const auto back = cache.swap_in(swapped).value();
  EXPECT_EQ(content(cache, back), before);
  EXPECT_EQ(cache.block_table(back).value()[0], pages_before[0]);
  EXPECT_EQ(cache.references(pages_before[1]), 2);
  EXPECT_EQ(cache.used_pages(), 3);
}

TEST(Swap, EvictedPrefixesComeBackFromHostMemory) {
  KvCache cache = cache_of_two_layers(3);
  Tokens tokens(10);
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto a = cache.add();
  append(cache, a, 10, 1);
  ASSERT_TRUE(cache.publish(a, tokens).is_ok());
  const auto before = content(cache, a);
  const SwappedSequence swapped = cache.swap_out(a).value();
  const auto other = cache.add();
  append(cache, other, 12, 5000);
  ASSERT_TRUE(cache.free(other).is_ok());
  EXPECT_EQ(content(cache, cache.swap_in(swapped).value()), before);
}

// The prefix was published again under other weights: what was swapped out keeps its own keys.
TEST(Swap, NeverMixesWithPagesOfOtherWeights) {
  KvCache cache = cache_of_two_layers();
  const Tokens tokens{1, 2, 3, 4};
  const auto a = cache.add();
  append(cache, a, 4, 1);
  ASSERT_TRUE(cache.publish(a, tokens).is_ok());
  const auto before = content(cache, a);
  const SwappedSequence swapped = cache.swap_out(a).value();
  cache.forget_prefixes();
  const auto renewed = cache.add();
  append(cache, renewed, 4, 900);
  ASSERT_TRUE(cache.publish(renewed, tokens).is_ok());
  const auto back = cache.swap_in(swapped).value();
  EXPECT_EQ(content(cache, back), before);
  ASSERT_TRUE(cache.publish(back, tokens).is_ok());
  EXPECT_EQ(content(cache, back), before) << "published nothing and took nothing";
}

TEST(Swap, TheUsualErrors) {
  KvCache cache = cache_of_two_layers(), other = cache_of_two_layers();
  EXPECT_EQ(cache.swap_out(4).status().code(), Code::not_found);
  const auto empty = cache.swap_out(cache.add());
  ASSERT_TRUE(empty) << empty.status().message();
  EXPECT_EQ(cache.length(cache.swap_in(*empty).value()).value(), 0);
  const auto refused = other.swap_in(*empty);
  EXPECT_EQ(refused.status().code(), Code::invalid_argument);
  EXPECT_THAT(refused.status().message(), HasSubstr("another cache"));
}

}  // namespace
}  // namespace chorale
