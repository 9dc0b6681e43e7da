// What each function of KvCache promises, one at a time. Random sequences of calls: kv_cache_model_test.cpp.
#include "chorale/kv_cache.h"

#include <cstring>
#include <limits>

#include "kv/fixture.h"

namespace chorale {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

KvCacheConfig small_config() {
  return {.layers = 2,
          .kv_heads = 3,
          .head_dim = 8,
          .value_head_dim = 5,
          .dtype = DType::float32,
          .page_size = 4,
          .pages = 6};
}
KvCache small_cache() { return KvCache::create(small_config()).value(); }

float pool_value(const TensorView& pool, std::int64_t slot, std::int64_t head, std::int64_t i) {
  return static_cast<const float*>(pool.data)[(slot * pool.shape[2] + head) * pool.shape[3] + i];
}

TEST(KvCacheConfig, NamesWhatIsWrong) {
  const auto with = [](auto change) {
    KvCacheConfig config = small_config();
    change(config);
    return KvCache::create(config).status();
  };
  expect_error(with([](auto& c) { c.layers = 0; }), Code::invalid_argument, "layers 0: must be from 1");
  expect_error(with([](auto& c) { c.kv_heads = -1; }), Code::invalid_argument, "kv_heads -1");
  expect_error(with([](auto& c) { c.head_dim = 257; }), Code::invalid_argument,
               "head_dim 257: must be from 1 to 256");
  expect_error(with([](auto& c) { c.value_head_dim = -2; }), Code::invalid_argument, "value_head_dim -2");
  expect_error(with([](auto& c) { c.page_size = 24; }), Code::invalid_argument,
               "page_size 24: must be a power of two");
  expect_error(with([](auto& c) { c.pages = 0; }), Code::invalid_argument, "pages 0");
  expect_error(with([](auto& c) { c.pages = std::int64_t{1} << 31; }), Code::invalid_argument,
               "pages 2147483648: must be from 1 to 2147483647");
}

TEST(KvCacheConfig, TooLargePoolsNameTheirBytes) {
  KvCacheConfig config{.layers = 64,
                       .kv_heads = 128,
                       .head_dim = 256,
                       .dtype = DType::bfloat16,
                       .page_size = 256,
                       .pages = (std::int64_t{1} << 31) - 1};
  // 64 * (2^31 - 1) * 256 * 128 * 512 * 2 bytes: addressable, but no machine has it.
  expect_error(KvCache::create(config).status(), Code::resource_exhausted, "4611686016279904256 bytes");
  config.layers = std::numeric_limits<int>::max();  // beyond 64 bits
  config.kv_heads = std::numeric_limits<int>::max();
  expect_error(KvCache::create(config).status(), Code::resource_exhausted, "more than can be addressed");
}

TEST(KvCache, ViewsHaveTheDocumentedShapes) {
  const KvCache cache = small_cache();
  EXPECT_EQ(cache.keys(1).describe(), "float32 [6, 4, 3, 8]");
  EXPECT_EQ(cache.values(0).describe(), "float32 [6, 4, 3, 5]");
  EXPECT_NE(cache.keys(0).data, cache.keys(1).data);
  EXPECT_TRUE(cache.keys(2).empty());
  EXPECT_TRUE(cache.values(-1).empty());
}

TEST(KvCache, AppendTakesPagesOnlyWhenNeeded) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  EXPECT_EQ(cache.pages_for(a, 5).value(), 2);
  const auto slots = cache.append(a, 5).value();
  const auto table = cache.block_table(a).value();
  ASSERT_EQ(table.size(), 2u);
  EXPECT_THAT(slots,
              ElementsAre(table[0] * 4, table[0] * 4 + 1, table[0] * 4 + 2, table[0] * 4 + 3, table[1] * 4));
  EXPECT_EQ(cache.pages_for(a, 3).value(), 0);
  EXPECT_EQ(cache.append(a, 3).value().size(), 3u);
  EXPECT_EQ(cache.used_pages(), 2);
  EXPECT_EQ(cache.length(a).value(), 8);
  EXPECT_TRUE(cache.append(a, 0).value().empty());
  expect_error(cache.append(a, -1).status(), Code::invalid_argument, "-1 tokens");
  expect_error(cache.append(a, std::numeric_limits<std::int64_t>::max()).status(), Code::out_of_range,
               "to 8: a sequence holds at most 2147483647");
}

TEST(KvCache, FullPoolLeavesEverythingAsItWas) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  ASSERT_TRUE(cache.append(a, 18));
  const auto table = cache.block_table(a).value();
  expect_error(cache.append(a, 7).status(), Code::resource_exhausted, "needs 2 pages: 1 of 6 are free");
  EXPECT_EQ(cache.length(a).value(), 18);
  EXPECT_EQ(cache.block_table(a).value(), table);
  EXPECT_EQ(cache.free_pages(), 1);
  EXPECT_TRUE(cache.append(a, 6));
  EXPECT_EQ(cache.free_pages(), 0);
}

TEST(KvCache, ForkSharesUntilOneSideWrites) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  const auto slots = cache.append(a, 6).value();
  for (const int layer : {0, 1})
    ASSERT_TRUE(cache
                    .store(layer, slots, counting({6, 3, 8}, 1000.f * (layer + 1)),
                           counting({6, 3, 5}, 5000.f * (layer + 1)))
                    .is_ok());
  const auto b = cache.fork(a).value();
  EXPECT_EQ(cache.used_pages(), 2);
  EXPECT_EQ(cache.references(static_cast<std::int32_t>(slots[0] / 4)), 2);
  EXPECT_EQ(cache.block_table(a).value(), cache.block_table(b).value());

  EXPECT_EQ(cache.pages_for(b, 1).value(), 1);
  const auto written = cache.append(b, 1).value();
  const auto table_a = cache.block_table(a).value(), table_b = cache.block_table(b).value();
  EXPECT_EQ(table_a[0], table_b[0]);
  EXPECT_NE(table_a[1], table_b[1]);
  EXPECT_EQ(written[0], table_b[1] * 4 + 2);
  for (const int layer : {0, 1}) {  // positions 4 and 5 were copied, in every layer
    for (const int offset : {0, 1}) {
      EXPECT_EQ(pool_value(cache.keys(layer), table_b[1] * 4 + offset, 2, 7),
                1000.f * (layer + 1) + static_cast<float>((4 + offset) * 24 + 23));
      EXPECT_EQ(pool_value(cache.values(layer), table_b[1] * 4 + offset, 2, 4),
                5000.f * (layer + 1) + static_cast<float>((4 + offset) * 15 + 14));
    }
  }
  EXPECT_EQ(cache.pages_for(a, 1).value(), 0) << "the other side owns its page alone again";
  ASSERT_TRUE(cache.free(a).is_ok());
  EXPECT_EQ(cache.used_pages(), 2);
  EXPECT_EQ(cache.references(table_a[1]), 0);
  ASSERT_TRUE(cache.free(b).is_ok());
  EXPECT_EQ(cache.used_pages(), 0);
}

TEST(KvCache, CopyOnWriteNeedsAPageToo) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  ASSERT_TRUE(cache.append(a, 22));
  const auto b = cache.fork(a).value();
  expect_error(cache.append(b, 1).status(), Code::resource_exhausted, "needs 1 pages: 0 of 6 are free");
  EXPECT_EQ(cache.block_table(a).value(), cache.block_table(b).value());
  ASSERT_TRUE(cache.free(a).is_ok());
  EXPECT_TRUE(cache.append(b, 2));
}

TEST(KvCache, FullLastPagesAreSharedWithoutACopy) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  ASSERT_TRUE(cache.append(a, 8));
  const auto b = cache.fork(a).value();
  EXPECT_EQ(cache.pages_for(b, 4).value(), 1);
  ASSERT_TRUE(cache.append(b, 4));
  EXPECT_EQ(cache.used_pages(), 3);
}

TEST(KvCache, TruncateFreesWholePages) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  ASSERT_TRUE(cache.append(a, 13));
  ASSERT_TRUE(cache.truncate(a, 9).is_ok());
  EXPECT_EQ(cache.used_pages(), 3);
  ASSERT_TRUE(cache.truncate(a, 8).is_ok());
  EXPECT_EQ(cache.used_pages(), 2);
  expect_error(cache.truncate(a, 9), Code::out_of_range, "to 9 tokens: it has 8");
  expect_error(cache.truncate(a, -1), Code::out_of_range, "to -1 tokens");
  ASSERT_TRUE(cache.truncate(a, 0).is_ok());
  EXPECT_EQ(cache.used_pages(), 0);
  EXPECT_TRUE(cache.append(a, 1));
}

TEST(KvCache, FreeingTwiceAndUseAfterFreeAreErrors) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  ASSERT_TRUE(cache.append(a, 3));
  ASSERT_TRUE(cache.free(a).is_ok());
  expect_error(cache.free(a), Code::not_found, "sequence 0: it was freed");
  expect_error(cache.append(a, 1).status(), Code::not_found, "it was freed");
  expect_error(cache.pages_for(a, 1).status(), Code::not_found, "it was freed");
  expect_error(cache.fork(a).status(), Code::not_found, "it was freed");
  expect_error(cache.truncate(a, 0), Code::not_found, "it was freed");
  expect_error(cache.length(a).status(), Code::not_found, "it was freed");
  expect_error(cache.block_table(a).status(), Code::not_found, "it was freed");
  expect_error(cache.batch(std::vector{a}, std::vector{1}).status(), Code::not_found, "it was freed");
  expect_error(cache.free(17), Code::not_found, "sequence 17: the cache never had it");
  expect_error(cache.free(-1), Code::not_found, "never had it");
  EXPECT_NE(cache.add(), a);
  EXPECT_EQ(cache.free_pages(), 6);
}

TEST(KvCache, StoreRefusesSlotsItMayNotWrite) {
  KvCache cache = small_cache();
  const auto a = cache.add();
  auto slots = cache.append(a, 2).value();
  const Tensor k = counting({2, 3, 8}, 1), v = counting({2, 3, 5}, 1);
  const auto store = [&](std::int64_t second) { return cache.store(0, std::vector{slots[0], second}, k, v); };
  expect_error(store(24), Code::out_of_range, "slot 24: the pool has slots 0 to 23");
  expect_error(store(-1), Code::out_of_range, "slot -1");
  expect_error(store(20), Code::invalid_argument, "slot 20: its page 5 has 0 owners");
  const auto b = cache.fork(a).value();
  expect_error(store(slots[1]), Code::invalid_argument, "has 2 owners: must be exactly 1");
  ASSERT_TRUE(cache.free(b).is_ok());
  EXPECT_EQ(pool_value(cache.keys(0), slots[0], 0, 0), 0) << "a refused store writes nothing";
  ASSERT_TRUE(store(slots[1]).is_ok());
  EXPECT_EQ(pool_value(cache.keys(0), slots[0], 0, 0), 1);
}

TEST(KvCache, StoreRefusesOtherTypesAndShapes) {
  KvCache cache = small_cache();
  const auto slots = cache.append(cache.add(), 2).value();
  const Tensor k = counting({2, 3, 8}, 1), v = counting({2, 3, 5}, 1);
  expect_error(cache.store(2, slots, k, v), Code::out_of_range, "layer 2: the cache has layers 0 to 1");
  expect_error(cache.store(0, slots, v, k), Code::invalid_argument,
               "k is float32 [2, 3, 5]: must be float32 [2, 3, 8]");
  expect_error(cache.store(0, slots, k, counting({1, 3, 5}, 1)), Code::invalid_argument,
               "v is float32 [1, 3, 5]: must be float32 [2, 3, 5]");
  expect_error(cache.store(0, slots, Tensor::zeros(DType::bfloat16, {2, 3, 8}), v), Code::invalid_argument,
               "k is bfloat16 [2, 3, 8]: must be float32");
  expect_error(cache.store(0, slots, TensorView{}, v), Code::invalid_argument,
               "k: rank 0: must be from 3 to 3");
  expect_error(cache.store(0, slots, TensorView::contiguous(nullptr, DType::float32, {2, 3, 8}), v),
               Code::invalid_argument, "k: no data");
  EXPECT_TRUE(cache.store(0, {}, counting({0, 3, 8}, 0), counting({0, 3, 5}, 0)).is_ok());
}

TEST(KvCache, StoreTakesAnyStrides) {
  KvCache cache = small_cache();
  const auto slots = cache.append(cache.add(), 2).value();
  // Keys [tokens, heads, dim] inside [dim, heads, tokens]; values with a stride of 0 over the heads.
  const Tensor k = counting({8, 3, 2}, 0), v = counting({2, 5}, 100);
  TensorView keys = TensorView::contiguous(k.view().data, DType::float32, {2, 3, 8});
  keys.stride = {1, 2, 6};
  TensorView values = TensorView::contiguous(v.view().data, DType::float32, {2, 3, 5});
  values.stride = {5, 0, 1};
  ASSERT_TRUE(cache.store(1, slots, keys, values).is_ok());
  for (std::int64_t t = 0; t < 2; ++t) {
    for (std::int64_t head = 0; head < 3; ++head) {
      for (std::int64_t i = 0; i < 8; ++i)
        EXPECT_EQ(pool_value(cache.keys(1), slots[t], head, i), static_cast<float>(t + 2 * head + 6 * i));
      for (std::int64_t i = 0; i < 5; ++i)
        EXPECT_EQ(pool_value(cache.values(1), slots[t], head, i), 100.f + static_cast<float>(5 * t + i));
    }
  }
}

TEST(KvCache, BatchDescribesTheSequences) {
  KvCache cache = small_cache();
  const auto a = cache.add(), b = cache.add(), c = cache.add();
  ASSERT_TRUE(cache.append(a, 5));
  ASSERT_TRUE(cache.append(c, 2));
  const auto batch = cache.batch(std::vector{c, b, a}, std::vector{1, 0, 5});
  ASSERT_TRUE(batch) << batch.status().message();
  EXPECT_THAT(batch->cu_seqlens_q, ElementsAre(0, 1, 1, 6));
  EXPECT_THAT(batch->kv_lens, ElementsAre(2, 0, 5));
  const auto pages_a = cache.block_table(a).value();
  EXPECT_THAT(batch->block_table,
              ElementsAre(cache.block_table(c).value()[0], -1, -1, -1, pages_a[0], pages_a[1]));
  expect_error(cache.batch(std::vector{a}, std::vector{6}).status(), Code::out_of_range,
               "q_lens[0] is 6: sequence 0 has 5 tokens");
  expect_error(cache.batch(std::vector{a}, std::vector{-1}).status(), Code::out_of_range, "q_lens[0] is -1");
  expect_error(cache.batch(std::vector{a}, std::vector<std::int32_t>{}).status(), Code::invalid_argument,
               "1 sequences and 0 q_lens");
  EXPECT_EQ(cache.batch({}, {}).value().sequences(), 0);
}

// More than 2^31 elements in one layer's keys. Memory is taken only where it is touched: a few pages.
TEST(KvCache, PoolsBeyond32BitsAreExact) {
  auto cache = KvCache::create({.kv_heads = 32,
                                .head_dim = 256,
                                .value_head_dim = 1,
                                .dtype = DType::bfloat16,
                                .page_size = 256,
                                .pages = 1100});
  ASSERT_TRUE(cache) << cache.status().message();
  ASSERT_GT(cache->keys(0).elements(), std::int64_t{1} << 31);
  const auto slots = cache->append(cache->add(), 1100 * 256).value();
  const std::vector<std::int64_t> ends{slots.front(), slots.back()};
  Tensor k = Tensor::zeros(DType::bfloat16, {2, 32, 256}), v = Tensor::zeros(DType::bfloat16, {2, 32, 1});
  for (std::size_t i = 0; i < k.as<bfloat16>().size(); ++i)
    k.as<bfloat16>()[i].bits = static_cast<std::uint16_t>(i);
  ASSERT_TRUE(cache->store(0, ends, k, v).is_ok());
  const auto* pool = static_cast<const bfloat16*>(cache->keys(0).data);
  EXPECT_EQ(std::memcmp(pool + slots.front() * 8192, k.as<bfloat16>().data(), 16384), 0);
  EXPECT_EQ(std::memcmp(pool + slots.back() * 8192, k.as<bfloat16>().data() + 8192, 16384), 0);
}

}  // namespace
}  // namespace chorale
