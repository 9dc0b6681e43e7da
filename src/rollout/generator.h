// Generator: requests in, completions out, by continuous batching over the paged cache.
//
// Each step runs the model once on a mixture of rows: one for each sequence that decodes, and chunks of the
// prompts of those that have just joined. Sequences join and leave at every step. When pages run out the
// latest arrival gives its own back and is computed again later. None of it shows in the results: the same
// request gives the same tokens and the same bits whatever else is running.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "chorale/status.h"
#include "model/model.h"
#include "rollout/cached_attention.h"
#include "rollout/request.h"
#include "rollout/scheduler.h"

namespace chorale {

struct GeneratorConfig {
  int page_size = 16;      // tokens; a power of two from 1 to 256
  std::int64_t pages = 0;  // in the pool, for all sequences together
  // As in KvCacheConfig: given exactly if the attentions' problem keeps keys and values in 8 bits.
  std::vector<float> key_scales{}, value_scales{};
  SchedulerConfig scheduler;
  int threads = 0;  // of the sampler; 0: CHORALE_NUM_THREADS, else all cores
};

struct GeneratorStats {
  std::int64_t steps = 0;
  std::int64_t computed_tokens = 0;  // rows, those of preempted sequences as often as they were computed
  std::int64_t generated_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t forks = 0;          // requests that began as a copy of a running one's sequence
  std::int64_t shared_tokens = 0;  // positions taken over from another sequence's pages
  double seconds = 0;              // in steps
  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(generated_tokens) / seconds : 0;
  }
};

// Which token a row of a step is.
struct StepRow {
  RequestId request = 0;
  std::int32_t position = 0;
};
// Sees every operation of every step, and which tokens its rows are. A position that was preempted is seen
// again.
class StepObserver : public Observer {
 public:
  // Before the step's operations: row i of each is rows[i], and row i of "logits" is rows[logit_rows[i]].
  virtual void begin_step(std::span<const StepRow> rows, std::span<const std::int32_t> logit_rows) = 0;
};

// Not thread-safe.
class Generator {
 public:
  // `model` must outlive the generator. Its parameters may change while the generator is idle: pages of
  // prompts are shared until then, and no longer. The attentions must be of the model's shape.
  static Result<Generator> create(const Model& model, LayerAttentions attentions,
                                  const GeneratorConfig& config);

  // Fails, with nothing changed, if the request is malformed or longer than the pool could ever hold.
  Status submit(const Request& request);
  // One step; the requests that it finished. On failure all unfinished requests are dropped.
  Result<std::vector<Completion>> step();
  bool is_idle() const { return scheduler_.is_idle(); }
  // Drops all unfinished requests.
  Status clear() { return scheduler_.clear(attention_.cache()); }

  // Submits, steps until all is finished, and returns the completions in the order of `requests`. The
  // generator must be idle. `stop`, if given, is looked at before each step: once it is set, everything is
  // dropped and Code::interrupted returned.
  Result<std::vector<Completion>> generate(std::span<const Request> requests,
                                           const std::atomic<bool>* stop = nullptr);

  // nullptr: none.
  void set_observer(StepObserver* observer) { observer_ = observer; }
  // Since the generator was made.
  GeneratorStats stats() const;
  // Which pages are free and used, between two steps.
  const KvCache& cache() const { return attention_.cache(); }

 private:
  Generator(const Model& model, CachedAttention attention, const GeneratorConfig& config)
      : model_(&model), attention_(std::move(attention)), config_(config), scheduler_(config.scheduler) {}
  Result<std::vector<Completion>> run_step();
  Result<std::vector<Completion>> draw(const TensorView& logits, std::span<Generation* const> drawing);

  const Model* model_;
  CachedAttention attention_;
  GeneratorConfig config_;
  Scheduler scheduler_;
  StepObserver* observer_ = nullptr;
  GeneratorStats stats_;
};

}  // namespace chorale
