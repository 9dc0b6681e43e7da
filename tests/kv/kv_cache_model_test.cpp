// Random calls on a KvCache, beside a model that keeps each sequence's tokens in a plain vector. After every
// call the cache must hold what the model holds, seen through block tables, and its books must balance.
//
// Keys and values are a hash of all tokens up to their own, of the salt and of the version of the weights: as
// in a transformer, equal prefixes have equal keys, and any page that is shared wrongly holds wrong bits.
// There are two tokens only, so that random sequences begin alike.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <ranges>
#include <vector>

#include "chorale/kv_cache.h"

namespace chorale {
namespace {

constexpr int steps = CHORALE_MODEL_TEST_STEPS;  // per seed

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a * 0x9e3779b97f4a7c15 + b + 0x632be59bd9b4e019;
  x = (x ^ (x >> 31)) * 0x94d049bb133111eb;
  return x ^ (x >> 29);
}

struct ModelSequence {
  std::uint64_t salt = 0, version = 0;
  std::vector<std::int32_t> tokens;
  std::int64_t published = 0;  // tokens in full pages that others must be able to find

  // What determines the keys and values of each position.
  std::vector<std::uint64_t> stamps() const {
    std::vector<std::uint64_t> stamps;
    std::uint64_t stamp = mix(salt, version);
    for (const std::int32_t token : tokens)
      stamps.push_back(stamp = mix(stamp, static_cast<std::uint64_t>(token)));
    return stamps;
  }
};

std::uint16_t element(std::uint64_t stamp, int layer, bool is_value, std::int64_t i) {
  return static_cast<std::uint16_t>(
      mix(stamp, static_cast<std::uint64_t>(layer * 64 + (is_value ? 32 : 0) + i)) >> 40);
}

std::uint64_t colliding_hash(std::uint64_t before, std::span<const std::int32_t> tokens) {
  return (before + static_cast<std::uint64_t>(tokens[0])) & 1;
}

struct Setup {
  int page_size;
  PrefixHash hash;
};

class ModelTest : public testing::TestWithParam<Setup> {
 protected:
  using Id = KvCache::SequenceId;

  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  }

  Tensor rows(std::span<const std::uint64_t> stamps, int layer, bool is_value) {
    const std::int64_t width = is_value ? 2 : 3;
    Tensor tensor = Tensor::zeros(DType::bfloat16, {std::ssize(stamps), 2, width});
    std::size_t next = 0;
    for (const std::uint64_t stamp : stamps) {
      for (std::int64_t i = 0; i < 2 * width; ++i)
        tensor.as<bfloat16>()[next++].bits = element(stamp, layer, is_value, i);
    }
    return tensor;
  }

  void append(Id id, ModelSequence& sequence) {
    const std::int64_t tokens = below(3 * page_size + 2);
    const std::int64_t needed = cache.pages_for(id, tokens).value(), free_before = cache.free_pages();
    const auto slots = cache.append(id, tokens);
    if (needed > free_before) {
      ASSERT_EQ(slots.status().code(), Code::resource_exhausted);
      ASSERT_EQ(cache.free_pages(), free_before);
      ++refusals;
      return;
    }
    ASSERT_TRUE(slots) << slots.status().message();
    ASSERT_EQ(cache.free_pages(), free_before - needed);
    for (std::int64_t i = 0; i < tokens; ++i)
      sequence.tokens.push_back(static_cast<std::int32_t>(below(16) == 0));
    const std::vector<std::uint64_t> stamps = sequence.stamps();
    const auto appended = std::span(stamps).last(static_cast<std::size_t>(tokens));
    for (int layer = 0; layer < 2; ++layer) {
      const Status stored =
          cache.store(layer, *slots, rows(appended, layer, false), rows(appended, layer, true));
      ASSERT_TRUE(stored.is_ok()) << stored.message();
    }
  }

  // Full pages at the start of `tokens` that a living sequence published, one token left out.
  std::int64_t certainly_found(const ModelSequence& wanted) const {
    std::int64_t most = 0;
    for (const auto& [id, other] : model) {
      if (other.salt != wanted.salt || other.version != wanted.version) continue;
      const std::int64_t common =
          std::ranges::mismatch(wanted.tokens, other.tokens).in1 - wanted.tokens.begin();
      most = std::max(
          most, std::min({common, other.published, std::ssize(wanted.tokens) - 1}) / page_size * page_size);
    }
    return most;
  }

  void add_with_prefix() {
    ModelSequence wanted{.salt = static_cast<std::uint64_t>(below(2)), .version = version, .tokens = {}};
    if (!model.empty() && below(4) != 0) {
      const ModelSequence& other = std::next(model.begin(), below(std::ssize(model)))->second;
      wanted.tokens.assign(other.tokens.begin(), other.tokens.begin() + below(std::ssize(other.tokens) + 1));
      wanted.salt = other.salt;
    }
    for (std::int64_t extra = below(2 * page_size + 2); extra > 0; --extra)
      wanted.tokens.push_back(static_cast<std::int32_t>(below(16) == 0));
    const auto match = cache.add_with_prefix(wanted.tokens, wanted.salt);
    ASSERT_EQ(match.tokens % page_size, 0);
    ASSERT_TRUE(match.tokens < std::ssize(wanted.tokens) || match.tokens == 0);
    ASSERT_GE(match.tokens, certainly_found(wanted));
    found_tokens += match.tokens;
    wanted.tokens.resize(static_cast<std::size_t>(match.tokens));
    wanted.published = match.tokens;
    model[match.sequence] = std::move(wanted);
  }

  void publish(Id id, ModelSequence& sequence) {
    const std::int64_t tokens = below(std::ssize(sequence.tokens) + 1);
    const Status published =
        cache.publish(id, std::span(sequence.tokens).first(static_cast<std::size_t>(tokens)));
    ASSERT_TRUE(published.is_ok()) << published.message();
    if (sequence.version == version)
      sequence.published = std::max(sequence.published, tokens / page_size * page_size);
  }

  void swap_in() {
    const auto chosen = std::next(swapped.begin(), below(std::ssize(swapped)));
    const std::int64_t free_before = cache.free_pages(),
                       pages = (chosen->first.length() + page_size - 1) / page_size;
    const auto back = cache.swap_in(chosen->first);
    if (!back) {
      ASSERT_EQ(back.status().code(), Code::resource_exhausted);
      ASSERT_EQ(cache.free_pages(), free_before);
      ASSERT_GT(pages, free_before);
      ++refusals;
      return;
    }
    chosen->second.published = 0;  // what it had published may be gone
    model[*back] = std::move(chosen->second);
    swapped.erase(chosen);
    ++swaps;
  }

  void step() {
    const std::int64_t action = below(100);
    if (model.empty() || action < 12) return add_with_prefix();
    if (action == 12) {
      cache.forget_prefixes();
      ++version;
      for (auto& [id, sequence] : model) sequence.published = 0;
      ASSERT_EQ(cache.cached_pages(), 0);
      return;
    }
    if (action < 22 && !swapped.empty()) return swap_in();
    const auto chosen = std::next(model.begin(), below(std::ssize(model)));
    const Id id = chosen->first;
    if (action < 55) return append(id, chosen->second);
    if (action < 70) return publish(id, chosen->second);
    if (action < 78) {
      model[cache.fork(id).value()] = ModelSequence(chosen->second);
    } else if (action < 86) {
      const std::int64_t length = below(std::ssize(chosen->second.tokens) + 1);
      ASSERT_TRUE(cache.truncate(id, length).is_ok());
      chosen->second.tokens.resize(static_cast<std::size_t>(length));
      chosen->second.published = std::min(chosen->second.published, length / page_size * page_size);
    } else if (action < 94) {
      ASSERT_TRUE(cache.free(id).is_ok());
      ASSERT_EQ(cache.free(id).code(), Code::not_found);
      model.erase(id);
    } else {
      swapped.emplace_back(cache.swap_out(id).value(), std::move(chosen->second));
      ASSERT_EQ(cache.length(id).status().code(), Code::not_found);
      model.erase(id);
    }
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
    for (const auto& [id, sequence] : model) {
      const std::vector<std::uint64_t> stamps = sequence.stamps();
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
    ASSERT_LE(cache.cached_pages(), cache.free_pages());
    for (std::int32_t page = 0; page < cache.config().pages; ++page)
      ASSERT_EQ(cache.references(page), owners.contains(page) ? owners[page] : 0);
    most_cached = std::max(most_cached, cache.cached_pages());
  }

  const int page_size = GetParam().page_size;
  KvCache cache = KvCache::create({.layers = 2,
                                   .kv_heads = 2,
                                   .head_dim = 3,
                                   .value_head_dim = 2,
                                   .page_size = page_size,
                                   .pages = 24,
                                   .prefix_hash = GetParam().hash})
                      .value();
  std::mt19937_64 random;
  std::map<Id, ModelSequence> model;
  std::vector<std::pair<SwappedSequence, ModelSequence>> swapped;
  std::uint64_t version = 0;  // of the weights
  std::int64_t refusals = 0, found_tokens = 0, swaps = 0, most_cached = 0;
};

TEST_P(ModelTest, HoldsWhatTheModelHolds) {
  for (const std::uint64_t seed : {11u, 23u}) {
    random.seed(seed);
    for (int i = 0; i < steps; ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", step " << i);
      step();
      if (HasFatalFailure()) return;
      expect_equal_to_model();
      if (HasFatalFailure()) return;
    }
  }
  // A test that never came to the interesting places proves nothing.
  EXPECT_GT(refusals, 0) << "the pool was never full";
  EXPECT_GT(found_tokens, 0);
  EXPECT_GT(swaps, 0);
  EXPECT_GT(most_cached, 0);
  for (const auto& [id, sequence] : model) ASSERT_TRUE(cache.free(id).is_ok());
  EXPECT_EQ(cache.used_pages(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, ModelTest,
                         testing::Values(Setup{1, nullptr}, Setup{2, colliding_hash}, Setup{4, nullptr},
                                         Setup{16, colliding_hash}),
                         [](const auto& instance) {
                           return "Page" + std::to_string(instance.param.page_size) +
                                  (instance.param.hash ? "Colliding" : "");
                         });

}  // namespace
}  // namespace chorale
