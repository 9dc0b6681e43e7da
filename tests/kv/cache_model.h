// A KvCache beside a model that keeps each sequence's tokens in a plain vector, driven by choices that come
// from anywhere: a random generator, or a fuzzer. After every call the cache must hold what the model holds,
// seen through block tables, and its books must balance.
//
// Keys and values are a hash of all tokens up to their own, of the salt and of the version of the weights: as
// in a transformer, equal prefixes have equal keys, and any page that is shared wrongly holds wrong bits.
// There are two tokens only, so that random sequences begin alike.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <ranges>
#include <utility>
#include <vector>

#include "chorale/kv_cache.h"

namespace chorale::kv_model {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
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

inline std::uint16_t element(std::uint64_t stamp, int layer, bool is_value, std::int64_t i) {
  return static_cast<std::uint16_t>(
      mix(stamp, static_cast<std::uint64_t>(layer * 64 + (is_value ? 32 : 0) + i)) >> 40);
}

inline std::uint64_t colliding_hash(std::uint64_t before, std::span<const std::int32_t> tokens) {
  return (before + static_cast<std::uint64_t>(tokens[0])) & 1;
}

struct Setup {
  int page_size;
  PrefixHash hash;
};

class CacheModel {
 public:
  using Id = KvCache::SequenceId;
  using Choose = std::function<std::int64_t(std::int64_t n)>;  // a number of [0, n)

  CacheModel(const Setup& setup, Choose choose) : page_size(setup.page_size), below(std::move(choose)) {
    cache = KvCache::create({.layers = 2,
                             .kv_heads = 2,
                             .head_dim = 3,
                             .value_head_dim = 2,
                             .page_size = page_size,
                             .pages = 24,
                             .prefix_hash = setup.hash});
  }

  // One call, and the comparison after it.
  void step() {
    act();
    if (!testing::Test::HasFatalFailure()) expect_equal_to_model();
  }
  void free_all() {
    for (const auto& [id, sequence] : model) ASSERT_TRUE(cache->free(id).is_ok());
    model.clear();
    ASSERT_EQ(cache->used_pages(), 0);
    ASSERT_EQ(cache->free_pages(), cache->config().pages);
  }

  // A test that never came to the interesting places proves nothing.
  std::int64_t refusals = 0, found_tokens = 0, swaps = 0, most_cached = 0, mistakes = 0;

 private:
  static constexpr std::size_t most_sequences = 12;  // forked ones take no pages, but time

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
    const std::int64_t needed = cache->pages_for(id, tokens).value(), free_before = cache->free_pages();
    const auto slots = cache->append(id, tokens);
    if (needed > free_before) {
      ASSERT_EQ(slots.status().code(), Code::resource_exhausted);
      ASSERT_EQ(cache->free_pages(), free_before);
      ++refusals;
      return;
    }
    ASSERT_TRUE(slots) << slots.status().message();
    ASSERT_EQ(cache->free_pages(), free_before - needed);
    for (std::int64_t i = 0; i < tokens; ++i)
      sequence.tokens.push_back(static_cast<std::int32_t>(below(16) == 0));
    const std::vector<std::uint64_t> stamps = sequence.stamps();
    const auto appended = std::span(stamps).last(static_cast<std::size_t>(tokens));
    for (int layer = 0; layer < 2; ++layer) {
      const Status stored =
          cache->store(layer, *slots, rows(appended, layer, false), rows(appended, layer, true));
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
    const auto match = cache->add_with_prefix(wanted.tokens, wanted.salt);
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
        cache->publish(id, std::span(sequence.tokens).first(static_cast<std::size_t>(tokens)));
    ASSERT_TRUE(published.is_ok()) << published.message();
    if (sequence.version == version)
      sequence.published = std::max(sequence.published, tokens / page_size * page_size);
  }

  void swap_in() {
    const auto chosen = std::next(swapped.begin(), below(std::ssize(swapped)));
    const std::int64_t free_before = cache->free_pages(),
                       pages = (chosen->first.length() + page_size - 1) / page_size;
    const auto back = cache->swap_in(chosen->first);
    if (!back) {
      ASSERT_EQ(back.status().code(), Code::resource_exhausted);
      ASSERT_EQ(cache->free_pages(), free_before);
      ASSERT_GT(pages, free_before);
      ++refusals;
      return;
    }
    chosen->second.published = 0;  // what it had published may be gone
    model[*back] = std::move(chosen->second);
    swapped.erase(chosen);
    ++swaps;
  }

  void forget_prefixes() {
    cache->forget_prefixes();
    ++version;
    for (auto& [id, sequence] : model) sequence.published = 0;
    ASSERT_EQ(cache->cached_pages(), 0);
  }

  void fork(Id id, const ModelSequence& sequence) {
    const auto copy = cache->fork(id);
    ASSERT_TRUE(copy) << copy.status().message();
    model[*copy] = ModelSequence(sequence);
  }

  void truncate(Id id, ModelSequence& sequence) {
    const std::int64_t length = below(std::ssize(sequence.tokens) + 1);
    ASSERT_TRUE(cache->truncate(id, length).is_ok());
    sequence.tokens.resize(static_cast<std::size_t>(length));
    sequence.published = std::min(sequence.published, length / page_size * page_size);
  }

  void free(Id id) {
    ASSERT_TRUE(cache->free(id).is_ok());
    ASSERT_EQ(cache->free(id).code(), Code::not_found);
    model.erase(id);
  }

  void swap_out(Id id) {
    auto out = cache->swap_out(id);
    ASSERT_TRUE(out) << out.status().message();
    swapped.emplace_back(std::move(*out), std::move(model[id]));
    ASSERT_EQ(cache->length(id).status().code(), Code::not_found);
    model.erase(id);
  }

  // A call that can never work: an error in words, and nothing else.
  void mistake(Id id, const ModelSequence& sequence) {
    constexpr std::array<std::int64_t, 6> odd{-1,
                                              0,
                                              7,
                                              std::int64_t{1} << 40,
                                              std::numeric_limits<std::int64_t>::max(),
                                              std::numeric_limits<std::int64_t>::min()};
    const std::int64_t number = odd[static_cast<std::size_t>(below(odd.size()))];
    const Id stranger = model.contains(number) ? -1 : number;
    const std::int64_t length = std::ssize(sequence.tokens);
    const std::int64_t bad_length = number >= 0 && number <= length ? length + 1 : number;
    const auto too_many = static_cast<std::size_t>(length) + 1;
    const auto free_slot = [&] {  // of a page that nobody owns
      std::int32_t page = 0;
      while (page < cache->config().pages && cache->references(page) != 0) ++page;
      return std::int64_t{page} * page_size;
    };
    const std::array one{std::uint64_t{1}};
    const auto store = [&](std::int64_t slot) {
      return cache->store(0, std::array{slot}, rows(one, 0, false), rows(one, 0, true));
    };
    const auto attempt = [&]() -> Status {
      switch (below(12)) {
        case 0:
          return cache->free(stranger);
        case 1:
          return cache->append(stranger, 1).status();
        case 2:
          return cache
              ->append(id, number < 0 ? number : std::numeric_limits<std::int64_t>::max() - number % 2)
              .status();
        case 3:
          return cache->truncate(id, bad_length);
        case 4:
          return cache->fork(stranger).status();
        case 5:
          return cache->swap_out(stranger).status();
        case 6:
          return cache->publish(id, std::vector<std::int32_t>(too_many, 1));
        case 7:
          return cache->batch(std::array{stranger}, std::array{1}).status();
        case 8:
          return cache->batch(std::array{id}, std::array{static_cast<std::int32_t>(length) + 1}).status();
        case 9:
          return store(free_slot());
        case 10:
          return store(number >= 0 && number < cache->config().pages * page_size ? -1 : number);
        default:
          return cache->pages_for(id, -1 - below(9)).status();
      }
    };
    const Status status = attempt();
    ASSERT_FALSE(status.is_ok());
    ASSERT_FALSE(status.message().empty());
    ++mistakes;
  }

  void act() {
    const std::int64_t action = below(100);
    const bool is_full = model.size() >= most_sequences;
    if (model.empty() || (action < 12 && !is_full)) return add_with_prefix();
    if (action == 12) return forget_prefixes();
    if (action < 22 && !swapped.empty() && !is_full) return swap_in();
    const auto chosen = std::next(model.begin(), below(std::ssize(model)));
    const Id id = chosen->first;
    if (is_full || action < 30) return free(id);
    if (action < 60) return append(id, chosen->second);
    if (action < 73) return publish(id, chosen->second);
    if (action < 80) return fork(id, chosen->second);
    if (action < 88) return truncate(id, chosen->second);
    if (action < 94) return swap_out(id);
    mistake(id, chosen->second);
  }

  // Whether a token's keys and values lie in a slot, in both layers.
  bool holds(std::int64_t slot, std::uint64_t stamp) const {
    bool same = true;
    for (int layer = 0; layer < 2; ++layer) {
      const auto* keys = static_cast<const bfloat16*>(cache->keys(layer).data) + slot * 6;
      const auto* values = static_cast<const bfloat16*>(cache->values(layer).data) + slot * 4;
      for (int i = 0; i < 6; ++i) same = same && keys[i].bits == element(stamp, layer, false, i);
      for (int i = 0; i < 4; ++i) same = same && values[i].bits == element(stamp, layer, true, i);
    }
    return same;
  }

  void expect_equal_to_model() {
    std::map<std::int32_t, int> owners;
    for (const auto& [id, sequence] : model) {
      const std::vector<std::uint64_t> stamps = sequence.stamps();
      ASSERT_EQ(cache->length(id).value(), std::ssize(stamps));
      const auto table = cache->block_table(id).value();
      ASSERT_EQ(std::ssize(table), (std::ssize(stamps) + page_size - 1) / page_size);
      for (const std::int32_t page : table) ++owners[page];
      for (std::int64_t i = 0; i < std::ssize(stamps); ++i) {
        const std::int64_t page = table[static_cast<std::size_t>(i / page_size)];
        ASSERT_TRUE(holds(page * page_size + i % page_size, stamps[static_cast<std::size_t>(i)]))
            << "sequence " << id << ", token " << i;
      }
    }
    ASSERT_EQ(cache->used_pages(), std::ssize(owners));
    ASSERT_EQ(cache->free_pages() + cache->used_pages(), cache->config().pages);
    ASSERT_LE(cache->cached_pages(), cache->free_pages());
    for (std::int32_t page = 0; page < cache->config().pages; ++page)
      ASSERT_EQ(cache->references(page), owners.contains(page) ? owners[page] : 0);
    most_cached = std::max(most_cached, cache->cached_pages());
  }

  int page_size;
  Choose below;
  Result<KvCache> cache = Status::not_found("");
  std::map<Id, ModelSequence> model;
  std::vector<std::pair<SwappedSequence, ModelSequence>> swapped;
  std::uint64_t version = 0;  // of the weights
};

}  // namespace chorale::kv_model
