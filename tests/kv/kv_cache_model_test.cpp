// Random calls on a KvCache, beside a model that keeps each sequence's tokens in a plain vector. After every
// call the cache must hold what the model holds, seen through block tables, and its books must balance.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "chorale/kv_cache.h"

namespace chorale {
namespace {

// Every token that was ever appended has a stamp; every element of its key and value follows from it.
std::uint16_t element(std::uint64_t stamp, int layer, bool is_value, std::int64_t i) {
  std::uint64_t x = stamp * 64 +
                    static_cast<std::uint64_t>(layer * 2 + (is_value ? 1 : 0)) * 0x9e3779b97f4a7c15 +
                    static_cast<std::uint64_t>(i) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 31)) * 0x94d049bb133111eb;
  return static_cast<std::uint16_t>(x >> 40);
}

class ModelTest : public testing::TestWithParam<int> {
 protected:
  using Id = KvCache::SequenceId;

  Tensor rows(const std::vector<std::uint64_t>& stamps, int layer, bool is_value) {
    const std::int64_t width = is_value ? 2 : 3;
    Tensor tensor = Tensor::zeros(DType::bfloat16, {std::ssize(stamps), 2, width});
    std::size_t next = 0;
    for (const std::uint64_t stamp : stamps) {
      for (std::int64_t i = 0; i < 2 * width; ++i)
        tensor.as<bfloat16>()[next++].bits = element(stamp, layer, is_value, i);
    }
    return tensor;
  }

  void append(Id id, std::int64_t tokens) {
    const std::int64_t needed = cache.pages_for(id, tokens).value();
    const std::int64_t free_before = cache.free_pages();
    const auto slots = cache.append(id, tokens);
    if (needed > free_before) {
      ASSERT_EQ(slots.status().code(), Code::resource_exhausted);
      ASSERT_EQ(cache.free_pages(), free_before);
      ++refusals;
      return;
    }
    ASSERT_TRUE(slots) << slots.status().message();
    ASSERT_EQ(cache.free_pages(), free_before - needed);
    std::vector<std::uint64_t> stamps;
    for (std::int64_t i = 0; i < tokens; ++i) stamps.push_back(next_stamp++);
    for (int layer = 0; layer < 2; ++layer) {
      const Status stored = cache.store(layer, *slots, rows(stamps, layer, false), rows(stamps, layer, true));
      ASSERT_TRUE(stored.is_ok()) << stored.message();
    }
    model[id].insert(model[id].end(), stamps.begin(), stamps.end());
  }

  void expect_token(std::uint64_t stamp, std::int64_t slot) {
    for (int layer = 0; layer < 2; ++layer) {
      const auto* keys = static_cast<const bfloat16*>(cache.keys(layer).data) + slot * 6;
      const auto* values = static_cast<const bfloat16*>(cache.values(layer).data) + slot * 4;
      for (int i = 0; i < 6; ++i) ASSERT_EQ(keys[i].bits, element(stamp, layer, false, i));
      for (int i = 0; i < 4; ++i) ASSERT_EQ(values[i].bits, element(stamp, layer, true, i));
    }
  }

  void expect_equal_to_model() {
    std::map<std::int32_t, int> owners;
    for (const auto& [id, stamps] : model) {
      ASSERT_EQ(cache.length(id).value(), std::ssize(stamps));
      const auto table = cache.block_table(id).value();
      ASSERT_EQ(std::ssize(table), (std::ssize(stamps) + page_size - 1) / page_size);
      for (const std::int32_t page : table) ++owners[page];
      for (std::int64_t i = 0; i < std::ssize(stamps); ++i)
        expect_token(
            stamps[static_cast<std::size_t>(i)],
            std::int64_t{table[static_cast<std::size_t>(i / page_size)]} * page_size + i % page_size);
    }
    ASSERT_EQ(cache.used_pages(), std::ssize(owners));
    ASSERT_EQ(cache.free_pages() + cache.used_pages(), cache.config().pages);
    for (std::int32_t page = 0; page < cache.config().pages; ++page)
      ASSERT_EQ(cache.references(page), owners.contains(page) ? owners[page] : 0);
  }

  void step(std::mt19937_64& random) {
    const auto below = [&](std::int64_t n) {
      return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
    };
    const std::int64_t action = below(10);
    if (model.empty() || action == 0) {
      model[cache.add()] = {};
      return;
    }
    const auto chosen = std::next(model.begin(), below(std::ssize(model)));
    const Id id = chosen->first;
    if (action <= 5) {
      append(id, below(3 * page_size + 2));
    } else if (action <= 7) {
      const auto forked = cache.fork(id);
      ASSERT_TRUE(forked);
      model[*forked] = chosen->second;
    } else if (action == 8) {
      const std::int64_t length = below(std::ssize(chosen->second) + 1);
      ASSERT_TRUE(cache.truncate(id, length).is_ok());
      chosen->second.resize(static_cast<std::size_t>(length));
    } else {
      ASSERT_TRUE(cache.free(id).is_ok());
      ASSERT_EQ(cache.free(id).code(), Code::not_found);
      model.erase(id);
    }
  }

  const int page_size = GetParam();
  KvCache cache = KvCache::create({.layers = 2,
                                   .kv_heads = 2,
                                   .head_dim = 3,
                                   .value_head_dim = 2,
                                   .page_size = page_size,
                                   .pages = 24})
                      .value();
  std::map<Id, std::vector<std::uint64_t>> model;
  std::uint64_t next_stamp = 1;
  int refusals = 0;
};

TEST_P(ModelTest, HoldsWhatTheModelHolds) {
  for (const std::uint64_t seed : {11u, 23u}) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < 600; ++i) {
      SCOPED_TRACE(testing::Message() << "page size " << page_size << ", seed " << seed << ", step " << i);
      step(random);
      if (HasFatalFailure()) return;
      expect_equal_to_model();
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(refusals, 0) << "the pool was never full: the test does not see exhaustion";
  for (const auto& [id, stamps] : model) ASSERT_TRUE(cache.free(id).is_ok());
  EXPECT_EQ(cache.used_pages(), 0);
}

INSTANTIATE_TEST_SUITE_P(PageSizes, ModelTest, testing::Values(1, 2, 8, 32),
                         [](const auto& instance) { return "Page" + std::to_string(instance.param); });

}  // namespace
}  // namespace chorale
