// CachedAttention: how a generator runs attention inside the model, over sequences whose keys lie in a
// KvCache.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "chorale/attention.h"
#include "chorale/kv_cache.h"
#include "chorale/roles.h"
#include "model/model.h"

namespace chorale {

// A role's attention of each layer: `prefill` for the positions of prompts, `decode` for those of generated
// tokens.
struct LayerAttentions {
  std::vector<Attention> prefill, decode;

  // The same attention everywhere.
  static LayerAttentions uniform(const Attention& attention, int layers);
  // What the configuration resolved for the rollout.
  static Result<LayerAttentions> build(const ResolvedRoles& roles, int layers);
};

// Consecutive positions of one sequence that a step computes.
struct Segment {
  KvCache::SequenceId sequence = 0;
  std::int32_t first = 0, count = 0;
};
// One step's rows: those of the prefill segments, then those of the decode segments. A row's phase follows
// from its position alone, never from what the step looks like: a generated token whose pages were taken away
// is computed again by the same implementation as the first time. So the two phases may differ in their bits,
// and a request may not.
struct StepSegments {
  std::vector<Segment> prefill, decode;
  std::vector<std::int64_t> slots;  // of each row, from KvCache::append
};

// Not thread-safe.
class CachedAttention final : public LayerAttention {
 public:
  // One entry per layer in each phase, all of one problem, which must be of the cache's shape and type.
  static Result<CachedAttention> create(LayerAttentions attentions, KvCache cache);

  KvCache& cache() { return cache_; }
  const KvCache& cache() const { return cache_; }

  // Plans the next forward: once a step, shared by the layers that run the same implementation, and by both
  // phases where they do.
  Status plan(const StepSegments& segments);
  // Stores k and v into the cache, then attends.
  Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                 const TensorView& out, const TensorView& lse) override;

 private:
  // Consecutive rows of the step.
  struct Part {
    std::vector<Segment> segments;
    std::int64_t first_row = 0, rows = 0;
  };
  // Rows of a layer that one implementation attends for.
  struct Work {
    const Attention* attention;
    std::int64_t first_row, rows;
    std::shared_ptr<const Plan> plan;
  };

  CachedAttention(LayerAttentions attentions, KvCache cache)
      : attentions_(std::move(attentions)), cache_(std::move(cache)) {}
  Result<std::shared_ptr<const Plan>> plan_for(const Attention& attention, const Part& part) const;
  Result<Batch> batch(const Part& part) const;

  LayerAttentions attentions_;
  KvCache cache_;
  std::vector<std::int64_t> slots_;
  std::vector<std::vector<Work>> work_;  // of each layer
};

}  // namespace chorale
