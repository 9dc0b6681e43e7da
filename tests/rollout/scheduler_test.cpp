// The scheduler without a model: what joins, what is computed, who gives way.
#include "rollout/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace chorale {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Tokens = std::vector<std::int32_t>;

// (request, first position, count) of each chunk.
struct Work {
  RequestId request;
  std::int32_t first, count;
  std::int64_t moves = 0;  // how often the request lost its place or found another's
  bool operator==(const Work& other) const {
    return request == other.request && first == other.first && count == other.count;
  }
};
void PrintTo(const Work& work, std::ostream* out) {
  *out << "request " << work.request << " [" << work.first << ", +" << work.count << ")";
}

// A scheduler, its cache, and a stand-in for the model, whose request i always generates i * 1000 + position.
struct Bench {
  explicit Bench(SchedulerConfig config, int page_size, std::int64_t pages)
      : scheduler(config),
        cache(KvCache::create({.kv_heads = 1,
                               .head_dim = 1,
                               .dtype = DType::float32,
                               .page_size = page_size,
                               .pages = pages})
                  .value()) {}

  Status submit(RequestId id, Tokens prompt, std::int64_t max_new_tokens) {
    return scheduler.submit({.id = id,
                             .prompt = std::move(prompt),
                             .max_new_tokens = max_new_tokens,
                             .sampling = {},
                             .stop_tokens = {}},
                            cache.config());
  }
  Status submit(RequestId id, std::int32_t prompt_tokens, std::int64_t max_new_tokens) {
    Tokens prompt;
    for (std::int32_t i = 0; i < prompt_tokens; ++i)
      prompt.push_back(static_cast<std::int32_t>(id) * 1000 + i);
    return submit(id, std::move(prompt), max_new_tokens);
  }

  // The stand-in for keys is the token itself, so that a place in the pool says which token it was computed
  // from.
  void compute(const Chunk& chunk) {
    Tensor keys = Tensor::zeros(DType::float32, {chunk.count, 1, 1});
    for (std::int32_t i = 0; i < chunk.count; ++i)
      keys.as<float>()[i] = static_cast<float>(chunk.generation->tokens[chunk.first + i]);
    const Status stored = cache.store(0, chunk.slots, keys, keys);
    EXPECT_TRUE(stored.is_ok()) << stored.message();
  }
  void expect_computed(const Chunk& chunk) {
    const auto table = cache.block_table(*chunk.generation->sequence).value();
    const int page_size = cache.config().page_size;
    for (std::int32_t i = 0; i < chunk.first + chunk.count; ++i)
      EXPECT_EQ(
          static_cast<const float*>(cache.keys(0).data)[table[i / page_size] * page_size + i % page_size],
          static_cast<float>(chunk.generation->tokens[i]));
  }

  std::vector<Work> step() {
    std::vector<Work> work;
    auto chunks = scheduler.schedule(cache);
    if (!chunks) {
      ADD_FAILURE() << chunks.status().message();
      return work;
    }
    for (const Chunk& chunk : *chunks) compute(chunk);
    for (const Chunk& chunk : *chunks) expect_computed(chunk);
    for (const Chunk& chunk : *chunks) {
      const Completion& so_far = chunk.generation->completion;
      work.push_back({chunk.generation->request.id, chunk.first, chunk.count,
                      so_far.preemptions + so_far.shared_tokens});
      if (chunk.draws()) draw(*chunk.generation);
    }
    return work;
  }
  void draw(Generation& generation) {
    generation.tokens.push_back(static_cast<std::int32_t>(generation.request.id * 1000 + generation.known()));
    generation.completion.tokens.push_back(generation.tokens.back());
    if (std::ssize(generation.completion.tokens) < generation.request.max_new_tokens) return;
    auto completion = scheduler.finish(generation, cache);
    EXPECT_TRUE(completion) << completion.status().message();
    completions[completion->id] = *completion;
  }

  Scheduler scheduler;
  KvCache cache;
  std::map<RequestId, Completion> completions;
};

TEST(Scheduler, PrefillsInChunksAndDecodesFirst) {
  Bench bench({.tokens_per_step = 6, .max_running = 4}, 4, 100);
  ASSERT_TRUE(bench.submit(1, 4, 3).is_ok());
  ASSERT_TRUE(bench.submit(2, 9, 2).is_ok());
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 0, 4}, Work{2, 0, 2}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 4, 1}, Work{2, 2, 5}));
  ASSERT_TRUE(bench.submit(3, 5, 1).is_ok());
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 5, 1}, Work{2, 7, 2}, Work{3, 0, 3}))
      << "3 joins a running step";
  EXPECT_THAT(bench.step(), ElementsAre(Work{2, 9, 1}, Work{3, 3, 2})) << "1 has left";
  EXPECT_THAT(bench.step(), IsEmpty());
  EXPECT_TRUE(bench.scheduler.is_idle());
  EXPECT_EQ(bench.cache.used_pages(), 0);
}

TEST(Scheduler, ManyDecodesGoBeforeAnEarlierPrefill) {
  Bench bench({.tokens_per_step = 3, .max_running = 3}, 4, 100);
  ASSERT_TRUE(bench.submit(1, 20, 1).is_ok());
  ASSERT_TRUE(bench.submit(2, 1, 9).is_ok());
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 0, 2}, Work{2, 0, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 2, 2}, Work{2, 1, 1}));
}

TEST(Scheduler, RunsNoMoreThanMaxRunning) {
  Bench bench({.tokens_per_step = 100, .max_running = 2}, 4, 100);
  for (RequestId id = 1; id <= 3; ++id) ASSERT_TRUE(bench.submit(id, 2, 2).is_ok());
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 0, 2}, Work{2, 0, 2}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 2, 1}, Work{2, 2, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{3, 0, 2}));
}

TEST(Scheduler, TheLatestArrivalGivesWayAndIsComputedAgain) {
  Bench bench({.tokens_per_step = 100, .max_running = 10}, 2, 5);
  ASSERT_TRUE(bench.submit(1, 3, 6).is_ok());  // 8 tokens in the end: 4 pages
  ASSERT_TRUE(bench.submit(2, 3, 3).is_ok());
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 0, 3}, Work{2, 0, 3}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 3, 1}, Work{2, 3, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 4, 1})) << "one page is left, and 2 must give back its own";
  EXPECT_EQ(bench.scheduler.stats().preemptions, 1);
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 5, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 6, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 7, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{2, 0, 5}))
      << "what 2 had drawn is computed again, not drawn again";
  EXPECT_TRUE(bench.scheduler.is_idle());
  EXPECT_EQ(bench.completions[2].preemptions, 1);
  EXPECT_THAT(bench.completions[2].tokens, ElementsAre(2003, 2004, 2005));
}

TEST(Scheduler, ArrivalsDoNotPassOneThatDoesNotFit) {
  Bench bench({.tokens_per_step = 100, .max_running = 10}, 2, 6);
  ASSERT_TRUE(bench.submit(1, 4, 3).is_ok());
  ASSERT_TRUE(bench.submit(2, 9, 1).is_ok());
  ASSERT_TRUE(bench.submit(3, 1, 1).is_ok());
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 0, 4}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 4, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 5, 1}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{2, 0, 9}));
  EXPECT_THAT(bench.step(), ElementsAre(Work{3, 0, 1}));
}

TEST(Scheduler, SamplesOfOnePromptShareItsPages) {
  Bench bench({.tokens_per_step = 100, .max_running = 10}, 4, 100);
  const Tokens prompt{5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
  for (RequestId id = 1; id <= 3; ++id) ASSERT_TRUE(bench.submit(id, prompt, 2).is_ok());
  ASSERT_TRUE(bench.submit(4, Tokens{5, 6, 7, 99, 1}, 2).is_ok());  // less than a page in common
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 0, 10}, Work{4, 0, 5}))
      << "2 and 3 wait for the pages of 1, 4 does not";
  EXPECT_THAT(bench.step(), ElementsAre(Work{1, 10, 1}, Work{2, 9, 1}, Work{3, 9, 1}, Work{4, 5, 1}));
  EXPECT_EQ(bench.scheduler.stats().shared_tokens, 18);
  EXPECT_EQ(bench.scheduler.stats().forks, 2);
  EXPECT_THAT(bench.step(), ElementsAre(Work{2, 10, 1}, Work{3, 10, 1}));
  EXPECT_EQ(bench.completions[2].shared_tokens, 9);
  EXPECT_EQ(bench.completions[1].shared_tokens, 0);
  EXPECT_EQ(bench.cache.used_pages(), 0);
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  Bench bench({.tokens_per_step = 8, .max_running = 8}, 4, 3);
  EXPECT_TRUE(bench.submit(1, 4, 9).is_ok()) << "4 + 9 tokens, the last of which is never computed";
  const Status status = bench.submit(2, 4, 10);
  EXPECT_EQ(status.code(), Code::out_of_range);
  EXPECT_THAT(
      status.message(),
      HasSubstr(
          "request 2: a prompt of 4 tokens and 10 new tokens: the pool of 3 pages of 4 tokens holds 12"));
  EXPECT_THAT(bench.submit(1, 1, 1).message(), HasSubstr("request 1: an unfinished request has this id"));
}

TEST(SchedulerConfig, NamesWhatIsWrong) {
  EXPECT_THAT((SchedulerConfig{.tokens_per_step = 0, .max_running = 1}).validate().message(),
              HasSubstr("tokens_per_step 0: must be at least 1"));
  EXPECT_THAT((SchedulerConfig{.tokens_per_step = 8, .max_running = 9}).validate().message(),
              HasSubstr("max_running 9: must be from 1 to tokens_per_step = 8"));
  EXPECT_THAT((SchedulerConfig{.tokens_per_step = 8, .max_running = 0}).validate().message(),
              HasSubstr("max_running 0"));
}

// Random requests over a small pool: positions of each come in order and without gaps, restarts only after
// preemption or with shared pages, limits hold at every step, and everything ends.
TEST(Scheduler, KeepsItsPromisesUnderPressure) {
  std::int64_t preemptions = 0, shared_tokens = 0;
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto between = [&](std::int64_t low, std::int64_t high) {
      return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
    };
    const SchedulerConfig config{.tokens_per_step = between(6, 20), .max_running = 6};
    const int page_size = 1 << between(0, 3);
    Bench bench(config, page_size, between(32, 60) / page_size);
    RequestId next = 1;
    std::map<RequestId, std::int64_t> expected;
    std::map<RequestId, Work> places;
    for (int step = 0; step < 3000 && (next <= 60 || !bench.scheduler.is_idle()); ++step) {
      if (next <= 60 && between(0, 2) == 0) {
        Tokens prompt(static_cast<std::size_t>(between(1, 20)));
        for (std::size_t i = 0; i < prompt.size(); ++i)
          prompt[i] = static_cast<std::int32_t>(i < 9 ? next % 3 : between(0, 1));  // shared beginnings
        expected[next] = between(1, 12);
        ASSERT_TRUE(bench.submit(next, prompt, expected[next]).is_ok());
        ++next;
      }
      std::int64_t rows = 0;
      const auto work = bench.step();
      for (const Work& w : work) {
        rows += w.count;
        const auto [last, is_first] = places.insert({w.request, w});
        const bool goes_on = w.first == (is_first ? 0 : last->second.first + last->second.count);
        ASSERT_TRUE(goes_on || w.moves > (is_first ? 0 : last->second.moves)) << "a gap, or a step back";
        ASSERT_GT(w.count, 0);
        last->second = w;
      }
      ASSERT_LE(rows, config.tokens_per_step);
      ASSERT_LE(std::ssize(work), config.max_running);
      ASSERT_EQ(bench.cache.free_pages() + bench.cache.used_pages(), bench.cache.config().pages);
    }
    ASSERT_TRUE(bench.scheduler.is_idle()) << "every request ends";
    EXPECT_EQ(bench.cache.used_pages(), 0);
    preemptions += bench.scheduler.stats().preemptions;
    shared_tokens += bench.scheduler.stats().shared_tokens;
    ASSERT_EQ(std::ssize(bench.completions), 60);
    for (const auto& [id, completion] : bench.completions)
      EXPECT_EQ(std::ssize(completion.tokens), expected[id]);
  }
  EXPECT_GT(preemptions, 0) << "no pressure: the test sees nothing";
  EXPECT_GT(shared_tokens, 0);
}

}  // namespace
}  // namespace chorale
