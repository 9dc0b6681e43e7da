#include "implementations/cpu/plan.h"

#include <algorithm>

#include "base/threads.h"

namespace chorale::tiled {

TiledPlan::TiledPlan(std::string_view implementation, Problem bound, Batch step, Arithmetic arithmetic,
                     int threads, Mutant mutant)
    : Plan(implementation, std::move(bound), std::move(step)),
      positions_(std::max<std::int64_t>(1, block_rows / problem().group_size())),
      arithmetic_(arithmetic),
      threads_(threads > 0 ? threads : default_threads()),
      mutant_(mutant),
      scale_(problem().scale_or_default() * (is_mutant(mutant, Mutant::scale_1_01) ? 1.01f : 1.0f)),
      visibility_(*this) {
  for (int sequence = 0; sequence < batch().sequences(); ++sequence) {
    for (std::int64_t index = 0; index < block_count(sequence); ++index)
      for (int head = 0; head < problem().kv_heads; ++head) {
        blocks_.push_back(block(sequence, head, index));
        most_rows_ = std::max(most_rows_, rows(blocks_.back()));
      }
  }
  // Under causal masks a block costs what lies before its last position; elsewhere the order does not matter.
  std::stable_sort(blocks_.begin(), blocks_.end(), [&](const QueryBlock& x, const QueryBlock& y) {
    return position(x.sequence, x.first + x.positions) > position(y.sequence, y.first + y.positions);
  });
  visibility_.compute();
}

QueryBlock TiledPlan::block(int sequence, int kv_head, std::int64_t index) const {
  const std::int64_t first = index * positions_;
  return {sequence, kv_head, index, first, std::min(positions_, batch().q_len(sequence) - first)};
}

std::int64_t TiledPlan::keys(int sequence) const {
  const std::int64_t keys = batch().kv_len(sequence);
  if (is_mutant(mutant_, Mutant::drop_last_key)) return std::max<std::int64_t>(keys - 1, 0);
  if (is_mutant(mutant_, Mutant::drop_page) && batch().is_paged())
    return std::max<std::int64_t>(keys - batch().page_size, 0);
  return keys;
}

}  // namespace chorale::tiled
