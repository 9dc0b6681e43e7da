// Prefix reuse: what is found, what is never found, and what goes when the pool needs pages.
#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "chorale/kv_cache.h"
#include "kv/fixture.h"

namespace chorale {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Tokens = std::vector<std::int32_t>;

KvCacheConfig prefix_config(std::int64_t pages = 8) {
  return {.kv_heads = 1, .head_dim = 2, .dtype = DType::float32, .page_size = 4, .pages = pages};
}
KvCache prefix_cache(std::int64_t pages = 8) { return KvCache::create(prefix_config(pages)).value(); }

// `count` tokens that count up from `first`.
Tokens tokens_from(std::int32_t first, std::size_t count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Computes what is missing of `tokens`: every element of a position's key and value is its token.
void fill(KvCache& cache, KvCache::SequenceId id, const Tokens& tokens) {
  const std::int64_t present = cache.length(id).value();
  const auto slots = cache.append(id, std::ssize(tokens) - present).value();
  Tensor rows = Tensor::zeros(DType::float32, {std::ssize(slots), 1, 2});
  for (std::size_t i = 0; i < rows.as<float>().size(); ++i)
    rows.as<float>()[i] = static_cast<float>(tokens[static_cast<std::size_t>(present) + i / 2]);
  ASSERT_TRUE(cache.store(0, slots, rows, rows).is_ok());
}

KvCache::SequenceId add_published(KvCache& cache, const Tokens& tokens, std::uint64_t salt = 0) {
  const auto match = cache.add_with_prefix(tokens, salt);
  fill(cache, match.sequence, tokens);
  EXPECT_TRUE(cache.publish(match.sequence, tokens).is_ok());
  return match.sequence;
}

// How much of `tokens` a new sequence would find; leaves the cache as it was, but for the order of eviction.
std::int64_t found(KvCache& cache, const Tokens& tokens, std::uint64_t salt = 0) {
  const auto match = cache.add_with_prefix(tokens, salt);
  EXPECT_EQ(cache.length(match.sequence).value(), match.tokens);
  const auto table = cache.block_table(match.sequence).value();
  for (std::size_t i = 0; i < static_cast<std::size_t>(match.tokens); ++i) {
    const std::int64_t slot = std::int64_t{table[i / 4]} * 4 + static_cast<std::int64_t>(i % 4);
    EXPECT_EQ(static_cast<const float*>(cache.keys(0).data)[slot * 2], static_cast<float>(tokens[i]))
        << "position " << i;
  }
  EXPECT_TRUE(cache.free(match.sequence).is_ok());
  return match.tokens;
}

TEST(Prefix, FullPagesAreSharedAndOneTokenIsLeft) {
  KvCache cache = prefix_cache();
  const auto a = add_published(cache, tokens_from(10, 10));
  EXPECT_EQ(found(cache, tokens_from(10, 3)), 0);
  EXPECT_EQ(found(cache, tokens_from(10, 4)), 0) << "the last token is left to compute";
  EXPECT_EQ(found(cache, tokens_from(10, 5)), 4);
  EXPECT_EQ(found(cache, tokens_from(10, 8)), 4);
  EXPECT_EQ(found(cache, tokens_from(10, 12)), 8) << "the third page is not full";

  const auto b = cache.add_with_prefix(tokens_from(10, 9));
  EXPECT_EQ(b.tokens, 8);
  EXPECT_EQ(cache.references(cache.block_table(a).value()[1]), 2);
  EXPECT_EQ(cache.used_pages(), 3);
  fill(cache, b.sequence, tokens_from(10, 9));
  EXPECT_EQ(cache.used_pages(), 4);
}

TEST(Prefix, NothingIsFoundBeforeItIsPublished) {
  KvCache cache = prefix_cache();
  const auto a = cache.add();
  fill(cache, a, tokens_from(0, 9));
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 0);
  ASSERT_TRUE(cache.publish(a, tokens_from(0, 7)).is_ok());
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 4);
  ASSERT_TRUE(cache.publish(a, tokens_from(0, 9)).is_ok());
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 8);
}

TEST(Prefix, AllThatComesBeforeCounts) {
  KvCache cache = prefix_cache();
  add_published(cache, tokens_from(0, 12));
  Tokens other = tokens_from(0, 12);
  other[1] = 99;  // pages 1 and 2 hold the same tokens as before, after another first page
  EXPECT_EQ(found(cache, other), 0);
  other = tokens_from(0, 12);
  other[7] = 99;
  EXPECT_EQ(found(cache, other), 4);
  EXPECT_EQ(found(cache, tokens_from(4, 8)), 0) << "the second page alone, at a sequence's start";
}

TEST(Prefix, SaltsDoNotMix) {
  KvCache cache = prefix_cache();
  add_published(cache, tokens_from(0, 8), 1);
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 0);
  EXPECT_EQ(found(cache, tokens_from(0, 9), 2), 0);
  EXPECT_EQ(found(cache, tokens_from(0, 9), 1), 8);
}

// With a hash that maps everything to one number, only the comparison of tokens tells prompts apart.
TEST(Prefix, CollisionsNeverServeAnotherPromptsPages) {
  KvCacheConfig config = prefix_config(16);
  config.prefix_hash = [](std::uint64_t, std::span<const std::int32_t>) { return std::uint64_t{7}; };
  KvCache cache = KvCache::create(config).value();
  add_published(cache, tokens_from(0, 8));
  add_published(cache, tokens_from(50, 8));
  add_published(cache, tokens_from(0, 8), 1);
  EXPECT_EQ(cache.used_pages(), 6);
  EXPECT_EQ(found(cache, tokens_from(100, 9)), 0);
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 8);
  EXPECT_EQ(found(cache, tokens_from(50, 9)), 8);
  Tokens crossed = tokens_from(0, 4);
  const Tokens tail = tokens_from(54, 5);
  crossed.insert(crossed.end(), tail.begin(), tail.end());
  EXPECT_EQ(found(cache, crossed), 4) << "the other prompt's second page after this one's first";
  EXPECT_EQ(found(cache, tokens_from(0, 9), 2), 0);
}

TEST(Prefix, FreedPagesStayFindableUntilThePoolNeedsThem) {
  KvCache cache = prefix_cache(4);
  const auto a = add_published(cache, tokens_from(0, 9));
  ASSERT_TRUE(cache.free(a).is_ok());
  EXPECT_EQ(cache.free_pages(), 4);
  EXPECT_EQ(cache.cached_pages(), 2) << "the third page was not full";
  EXPECT_EQ(cache.used_pages(), 0);
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 8);

  const auto b = cache.add();
  ASSERT_TRUE(cache.append(b, 8)) << "pages without content come first";
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 8);
  ASSERT_TRUE(cache.append(b, 4));
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 4) << "the later page goes before the one it needs";
  ASSERT_TRUE(cache.append(b, 4));
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 0);
  EXPECT_EQ(cache.cached_pages(), 0);
  expect_error(cache.append(b, 1).status(), Code::resource_exhausted, "needs 1 pages: 0 of 4 are free");
}

TEST(Prefix, TheLeastRecentlyUsedGoesFirst) {
  KvCache cache = prefix_cache(3);
  for (const int first : {0, 20, 40})
    ASSERT_TRUE(cache.free(add_published(cache, tokens_from(first, 4))).is_ok());
  EXPECT_EQ(cache.cached_pages(), 3);
  EXPECT_EQ(found(cache, tokens_from(0, 5)), 4);  // a use: 20 is now the oldest
  ASSERT_TRUE(cache.append(cache.add(), 1));
  EXPECT_EQ(found(cache, tokens_from(20, 5)), 0);
  EXPECT_EQ(found(cache, tokens_from(40, 5)), 4);
  EXPECT_EQ(found(cache, tokens_from(0, 5)), 4);
}

// Beside a list in the order of use: prompts of one page come, stay for a while and go, in a pool with room
// for half of them. A prompt is found exactly where the list still has it.
TEST(Prefix, RandomUsesAreEvictedInTheirOrder) {
  constexpr std::int32_t prompts = 12, pages = 6, most_running = 4;
  KvCache cache = prefix_cache(pages);
  std::mt19937 random(5);
  std::vector<std::int32_t> unused;  // prompts whose page nobody uses, the longest unused first
  std::vector<std::pair<std::int32_t, KvCache::SequenceId>> running;
  int reused = 0, evicted = 0;
  for (int step = 0; step < 5000; ++step) {
    if (std::ssize(running) == most_running || (!running.empty() && random() % 2 == 0)) {
      const auto leaving = running.begin() + static_cast<std::ptrdiff_t>(random() % running.size());
      ASSERT_TRUE(cache.free(leaving->second).is_ok());
      unused.push_back(leaving->first);
      running.erase(leaving);
      continue;
    }
    const auto prompt = static_cast<std::int32_t>(random() % prompts);
    if (std::ranges::find(running, prompt, [](const auto& r) { return r.first; }) != running.end()) continue;
    Tokens tokens = tokens_from(prompt * 100, 5);
    const auto match = cache.add_with_prefix(tokens);
    const bool known = std::erase(unused, prompt) > 0;
    ASSERT_EQ(match.tokens, known ? 4 : 0) << "prompt " << prompt << ", step " << step;
    reused += known;
    if (!known && std::ssize(unused) + std::ssize(running) == pages) {
      unused.erase(unused.begin());
      ++evicted;
    }
    tokens.pop_back();
    fill(cache, match.sequence, tokens);
    ASSERT_TRUE(cache.publish(match.sequence, tokens).is_ok());
    running.emplace_back(prompt, match.sequence);
    ASSERT_EQ(cache.cached_pages(), std::ssize(unused));
  }
  EXPECT_GT(reused, 500);
  EXPECT_GT(evicted, 500);
}

TEST(Prefix, APageInUseIsNeverEvicted) {
  KvCache cache = prefix_cache(3);
  ASSERT_TRUE(cache.free(add_published(cache, tokens_from(0, 8))).is_ok());
  const auto user = cache.add_with_prefix(tokens_from(0, 9));
  EXPECT_EQ(user.tokens, 8);
  EXPECT_EQ(cache.free_pages(), 1) << "what was cached is in use again";
  EXPECT_EQ(cache.cached_pages(), 0);
  const auto b = cache.add();
  ASSERT_TRUE(cache.append(b, 4));
  expect_error(cache.append(b, 1).status(), Code::resource_exhausted, "0 of 3 are free");
  EXPECT_EQ(found(cache, tokens_from(0, 9)), 8);
}

TEST(Prefix, PublishingWhatIsKnownGivesTheOwnPagesBack) {
  KvCache cache = prefix_cache();
  const auto a = cache.add(), b = cache.add();
  const Tokens tokens = tokens_from(0, 10);
  fill(cache, a, tokens);
  fill(cache, b, tokens);
  EXPECT_EQ(cache.used_pages(), 6);
  ASSERT_TRUE(cache.publish(a, tokens).is_ok());
  ASSERT_TRUE(cache.publish(b, tokens).is_ok());
  EXPECT_EQ(cache.used_pages(), 4);
  const auto pages_a = cache.block_table(a).value(), pages_b = cache.block_table(b).value();
  EXPECT_EQ(pages_a[0], pages_b[0]);
  EXPECT_EQ(pages_a[1], pages_b[1]);
  EXPECT_NE(pages_a[2], pages_b[2]);
  EXPECT_EQ(found(cache, tokens), 8);
}

// A fork that keeps its own first page while the second, shared one was published below another.
TEST(Prefix, EvictingAParentHidesWhatComesAfterIt) {
  KvCache cache = prefix_cache(4);
  const Tokens tokens = tokens_from(0, 9);
  const auto a = add_published(cache, tokens_from(0, 4));
  const auto b = cache.add();
  fill(cache, b, tokens_from(0, 8));
  const auto forked = cache.fork(b).value();
  ASSERT_TRUE(
      cache.publish(b, tokens_from(0, 8)).is_ok());  // takes a's first page; the second is the fork's too
  ASSERT_TRUE(cache.free(a).is_ok());
  ASSERT_TRUE(cache.free(b).is_ok());
  EXPECT_EQ(cache.cached_pages(), 1);
  EXPECT_EQ(found(cache, tokens), 8);
  ASSERT_TRUE(cache.append(cache.add(), 8));  // the free page, and the cached one
  EXPECT_EQ(found(cache, tokens), 0);
  ASSERT_TRUE(cache.publish(forked, tokens_from(0, 8)).is_ok());
  EXPECT_EQ(found(cache, tokens), 8) << "the fork has both pages";
}

TEST(Prefix, PublishedPagesAreNeverWritten) {
  KvCache cache = prefix_cache(3);
  const auto a = cache.add();
  fill(cache, a, tokens_from(0, 4));
  const std::int64_t slot = std::int64_t{cache.block_table(a).value()[0]} * 4 + 3;
  ASSERT_TRUE(cache.publish(a, tokens_from(0, 4)).is_ok());
  const Tensor row = Tensor::zeros(DType::float32, {1, 1, 2});
  expect_error(cache.store(0, std::vector{slot}, row, row), Code::invalid_argument,
               "is published: must not change");

  // Going back into the page: the only owner takes it out of the index and writes on.
  ASSERT_TRUE(cache.truncate(a, 3).is_ok());
  EXPECT_EQ(found(cache, tokens_from(0, 5)), 4) << "nothing was written yet";
  Tokens other = tokens_from(0, 3);
  other.push_back(70);
  fill(cache, a, other);
  EXPECT_EQ(found(cache, tokens_from(0, 5)), 0);
  EXPECT_EQ(cache.used_pages(), 1);

  // With a second owner it is copied, and stays what it was.
  ASSERT_TRUE(cache.publish(a, other).is_ok());
  const auto b = cache.fork(a).value();
  ASSERT_TRUE(cache.truncate(b, 3).is_ok());
  fill(cache, b, tokens_from(0, 4));
  EXPECT_EQ(cache.used_pages(), 2);
  other.push_back(0);
  EXPECT_EQ(found(cache, other), 4);
}

TEST(Prefix, WeightsThatChangeLeaveNothingBehind) {
  KvCache cache = prefix_cache();
  const Tokens tokens = tokens_from(0, 9);
  ASSERT_TRUE(cache.free(add_published(cache, tokens)).is_ok());
  const auto running = add_published(cache, tokens_from(20, 8));
  const auto forked = cache.fork(running).value();
  cache.forget_prefixes();
  EXPECT_EQ(cache.cached_pages(), 0);
  EXPECT_EQ(cache.used_pages(), 2);
  EXPECT_EQ(found(cache, tokens), 0);
  EXPECT_EQ(found(cache, tokens_from(20, 9)), 0);
  for (const auto id : {running, forked}) {
    ASSERT_TRUE(cache.publish(id, tokens_from(20, 8)).is_ok());
    EXPECT_EQ(found(cache, tokens_from(20, 9)), 0) << "its keys are of the old weights";
  }
  add_published(cache, tokens_from(20, 8));
  EXPECT_EQ(found(cache, tokens_from(20, 9)), 8);
}

TEST(Prefix, PublishNamesWhatIsWrong) {
  KvCache cache = prefix_cache();
  const auto a = add_published(cache, tokens_from(0, 6));
  expect_error(cache.publish(a, tokens_from(0, 7)), Code::out_of_range,
               "publish 7 tokens of sequence 0: it has 6");
  expect_error(cache.publish(5, {}), Code::not_found, "sequence 5");
  Tokens other = tokens_from(0, 6);
  other[2] = 9;
  expect_error(cache.publish(a, other), Code::invalid_argument,
               "position 2 was published with another token than 9");
  EXPECT_EQ(found(cache, tokens_from(0, 6)), 4);
}

}  // namespace
}  // namespace chorale
