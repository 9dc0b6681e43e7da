// Scheduler: which tokens of which sequences the next step computes. It decides who joins, who is preempted
// and whose pages are shared; it never looks at a model, and nothing it decides changes what a request gets.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "chorale/kv_cache.h"
#include "chorale/status.h"
#include "rollout/request.h"

namespace chorale {

// What happens to the keys and values of a sequence whose pages are taken away. The results are the same.
enum class Preemption {
  recompute,  // forgotten, and computed again
  swap,       // copied to host memory, and back
};

struct SchedulerConfig {
  std::int64_t tokens_per_step = 512;  // rows of a step, decode and chunks of prefill together
  std::int64_t max_running = 256;  // sequences; at most tokens_per_step, so that all can decode in one step
  Preemption preemption = Preemption::recompute;
  Status validate() const;  // names the field, the value and the limit
};

// An unfinished request. It is running while it has a sequence in the cache, and waiting otherwise.
struct Generation {
  Request request;
  std::vector<std::int32_t> tokens;  // the prompt and what was drawn
  std::optional<KvCache::SequenceId> sequence;
  std::optional<SwappedSequence> swapped;  // of one that waits with its keys in host memory
  std::int64_t cached = 0;  // tokens whose keys are in the cache, or in host memory, from the front
  Completion completion;

  bool is_running() const { return sequence.has_value(); }
  std::int64_t known() const { return std::ssize(tokens); }
  std::int64_t remaining() const {
    return known() - cached;
  }  // tokens to compute before the next can be drawn
  bool is_decoding() const { return is_running() && remaining() == 1; }
};

// Positions [first, first + count) of a generation, with room in the cache. `count` of them are computed by
// the step; if that is all that is known of the generation, its next token can be drawn.
struct Chunk {
  Generation* generation = nullptr;
  std::int32_t first = 0, count = 0;
  std::vector<std::int64_t> slots;
  bool draws() const { return first + count == generation->known(); }
};

struct SchedulerStats {
  std::int64_t preemptions = 0;
  std::int64_t forks = 0;          // newcomers that began as a copy of a running sequence
  std::int64_t shared_tokens = 0;  // in forks, and in pages found by their prompt
};

// Not thread-safe. The cache is used by nobody else.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config) : config_(config) {}

  // Fails, with nothing changed, if the request could never run in a pool like this one, or its id is in use.
  Status submit(const Request& request, const KvCacheConfig& pool);
  // The next step, in order of arrival. Empty only if everything is finished.
  Result<std::vector<Chunk>> schedule(KvCache& cache);
  // The chunks' keys are stored: other requests may share the full pages of their prompts from now on.
  Status publish(std::span<const Chunk> chunks, KvCache& cache);
  // Takes a finished generation out and gives its pages back.
  Result<Completion> finish(const Generation& generation, KvCache& cache);
  // Drops everything.
  Status clear(KvCache& cache);

  bool is_idle() const { return generations_.empty(); }
  const SchedulerStats& stats() const { return stats_; }

 private:
  // A running generation whose first tokens are another's too.
  struct Prefix {
    const Generation* source = nullptr;
    std::int64_t tokens = 0;  // that are in the cache
    bool grows = false;       // worth waiting for: a page or more of it is about to be computed
  };
  Prefix find_prefix(const Generation& newcomer, int page_size) const;
  Result<std::int64_t> promised_pages(const KvCache& cache) const;
  Status admit(KvCache& cache);
  Result<bool> start(Generation& newcomer, const Prefix& prefix, KvCache& cache);
  std::vector<std::int64_t> share_budget() const;
  Result<bool> make_room(const Generation& generation, std::int64_t tokens, KvCache& cache);
  Status preempt(Generation& generation, KvCache& cache);

  SchedulerConfig config_;
  SchedulerStats stats_;
  std::vector<std::unique_ptr<Generation>> generations_;  // in order of arrival
};

}  // namespace chorale
