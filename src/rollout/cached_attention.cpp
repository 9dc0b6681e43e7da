#include "rollout/cached_attention.h"

#include <fmt/format.h>

#include <numeric>

namespace chorale {
namespace {

std::int64_t count_rows(std::span<const Segment> segments) {
  return std::accumulate(segments.begin(), segments.end(), std::int64_t{0},
                         [](std::int64_t sum, const Segment& s) { return sum + s.count; });
}

TensorView rows_of(const TensorView& view, std::int64_t first, std::int64_t count) {
  return view.empty() ? view : view.slice(0, first, first + count);
}

Status check_problems(const LayerAttentions& attentions, const KvCacheConfig& cache) {
  const auto layers = static_cast<std::size_t>(cache.layers);
  if (attentions.prefill.size() != layers || attentions.decode.size() != layers)
    return Status::invalid_argument(
        fmt::format("{} prefill and {} decode attentions: must be one of each for {} layers",
                    attentions.prefill.size(), attentions.decode.size(), layers));
  const std::string expected = attentions.prefill[0].problem().describe();
  for (const auto* phase : {&attentions.prefill, &attentions.decode}) {
    for (std::size_t layer = 0; layer < layers; ++layer) {
      const Problem& problem = (*phase)[layer].problem();
      if (problem.describe() != expected)
        return Status::invalid_argument(
            fmt::format("layer {} has the attention problem {}: all layers must have {}", layer,
                        problem.describe(), expected));
    }
  }
  const Problem& problem = attentions.prefill[0].problem();
  if (problem.kv_heads != cache.kv_heads || problem.head_dim != cache.head_dim ||
      problem.kv_dtype_or_default() != cache.dtype ||
      problem.value_dim() != (cache.value_head_dim == 0 ? cache.head_dim : cache.value_head_dim) ||
      problem.sinks)
    return Status::invalid_argument(
        fmt::format("the attention problem is {}: the cache holds {} KV heads of {} in {}, without sinks",
                    expected, cache.kv_heads, cache.head_dim, name(cache.dtype)));
  return Status::ok();
}

}  // namespace

LayerAttentions LayerAttentions::uniform(const Attention& attention, int layers) {
  const std::vector<Attention> each(static_cast<std::size_t>(layers), attention);
  return {each, each};
}

Result<LayerAttentions> LayerAttentions::build(const ResolvedRoles& roles, int layers) {
  const auto rollout = roles.roles.find(Role::rollout);
  const auto build_phase = [&](Phase phase) -> Result<std::vector<Attention>> {
    std::vector<Attention> attentions;
    for (int layer = 0; layer < layers; ++layer) {
      const Resolution* found = nullptr;
      if (rollout != roles.roles.end()) {
        for (const Resolution& resolution : rollout->second)
          if (resolution.phase == phase && resolution.first_layer <= layer && layer <= resolution.last_layer)
            found = &resolution;
      }
      if (found == nullptr)
        return Status::invalid_argument(
            fmt::format("the rollout's {} of layer {} is not resolved", name(phase), layer));
      CHORALE_ASSIGN_OR_RETURN(Attention attention, found->build());
      attentions.push_back(std::move(attention));
    }
    return attentions;
  };
  LayerAttentions result;
  CHORALE_ASSIGN_OR_RETURN(result.prefill, build_phase(Phase::prefill));
  CHORALE_ASSIGN_OR_RETURN(result.decode, build_phase(Phase::decode));
  return result;
}

Result<CachedAttention> CachedAttention::create(LayerAttentions attentions, KvCache cache) {
  CHORALE_RETURN_IF_ERROR(check_problems(attentions, cache.config()));
  return CachedAttention(std::move(attentions), std::move(cache));
}

Result<Batch> CachedAttention::batch(const Part& part) const {
  std::vector<std::int32_t> cu_seqlens_q{0}, kv_lens;
  std::vector<std::vector<std::int32_t>> block_tables;
  for (const Segment& segment : part.segments) {
    cu_seqlens_q.push_back(cu_seqlens_q.back() + segment.count);
    kv_lens.push_back(segment.first + segment.count);
    CHORALE_ASSIGN_OR_RETURN(block_tables.emplace_back(), cache_.block_table(segment.sequence));
  }
  return Batch::paged(std::move(cu_seqlens_q), std::move(kv_lens), cache_.config().page_size, block_tables);
}

// An earlier layer's plan, if it runs the same implementation on the same rows.
Result<std::shared_ptr<const Plan>> CachedAttention::plan_for(const Attention& attention,
                                                              const Part& part) const {
  for (const auto& layer : work_) {
    for (const Work& work : layer) {
      const bool same_rows = work.first_row == part.first_row && work.rows == part.rows;
      if (same_rows && &work.attention->implementation() == &attention.implementation()) return work.plan;
    }
  }
  CHORALE_ASSIGN_OR_RETURN(const Batch rows, batch(part));
  return attention.plan(rows);
}

Status CachedAttention::plan(const StepSegments& step) {
  const std::int64_t prefill_rows = count_rows(step.prefill), decode_rows = count_rows(step.decode);
  const Part prefill{step.prefill, 0, prefill_rows}, decode{step.decode, prefill_rows, decode_rows};
  Part all{step.prefill, 0, prefill_rows + decode_rows};
  all.segments.insert(all.segments.end(), step.decode.begin(), step.decode.end());

  slots_ = step.slots;
  work_.clear();
  for (std::size_t i = 0; i < attentions_.prefill.size(); ++i) {
    const Attention &prefill_attention = attentions_.prefill[i], &decode_attention = attentions_.decode[i];
    std::vector<Work> layer;
    const auto add = [&](const Attention& attention, const Part& part) -> Status {
      if (part.rows == 0) return Status::ok();
      CHORALE_ASSIGN_OR_RETURN(auto plan, plan_for(attention, part));
      layer.push_back({&attention, part.first_row, part.rows, std::move(plan)});
      return Status::ok();
    };
    if (&prefill_attention.implementation() == &decode_attention.implementation()) {
      CHORALE_RETURN_IF_ERROR(add(prefill_attention, all));
    } else {
      CHORALE_RETURN_IF_ERROR(add(prefill_attention, prefill));
      CHORALE_RETURN_IF_ERROR(add(decode_attention, decode));
    }
    work_.push_back(std::move(layer));
  }
  return Status::ok();
}

Status CachedAttention::forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                                const TensorView& out, const TensorView& lse) {
  if (layer < 0 || layer >= std::ssize(work_))
    return Status::out_of_range(fmt::format("layer {}: {} layers are planned", layer, work_.size()));
  CHORALE_RETURN_IF_ERROR(cache_.store(layer, slots_, k, v));
  for (const Work& work : work_[static_cast<std::size_t>(layer)]) {
    const auto part = [&](const TensorView& view) { return rows_of(view, work.first_row, work.rows); };
    CHORALE_RETURN_IF_ERROR(work.attention->forward(*work.plan, {.q = part(q),
                                                                 .k = cache_.keys(layer),
                                                                 .v = cache_.values(layer),
                                                                 .out = part(out),
                                                                 .lse = part(lse),
                                                                 .sinks = {},
                                                                 .k_scale = cache_.key_scales(layer),
                                                                 .v_scale = cache_.value_scales(layer)}));
  }
  return Status::ok();
}

}  // namespace chorale
