#include "implementations/cpu/few_tasks.h"

#include <algorithm>

namespace chorale::tiled {
namespace {

// Every chunk is a task, under kv_heads / split heads.
void split_chunks(const TiledPlan& plan, int split, FewTasks& work) {
  const int all = plan.problem().kv_heads, heads = (all + split - 1) / split;
  work.tasks.clear();
  work.first_state.clear();
  work.states = 0;
  for (const int sequence : work.sequences) {
    work.first_state.push_back(work.states);
    for (std::int64_t chunk = 0; chunk < plan.chunks(sequence); ++chunk)
      for (int head = 0; head < all; head += heads) {
        work.tasks.push_back({sequence, head, std::min(heads, all - head), chunk, 1, work.states});
        work.states += static_cast<std::size_t>(work.tasks.back().heads);
      }
  }
}

}  // namespace

FewTasks few_tasks(const TiledPlan& plan) {
  FewTasks work;
  for (int sequence = 0; sequence < plan.batch().sequences(); ++sequence)
    if (plan.sequence_rows(sequence) <= few_rows && plan.sequence_rows(sequence) > 0)
      work.sequences.push_back(sequence);
  std::stable_sort(work.sequences.begin(), work.sequences.end(),
                   [&](int x, int y) { return plan.keys(x) > plan.keys(y); });
  const auto enough = static_cast<std::size_t>(4 * plan.threads());
  const int heads = plan.problem().kv_heads;
  work.whole = plan.threads() == 1 || work.sequences.size() >= enough;
  if (work.whole) {
    for (const int sequence : work.sequences)
      work.tasks.push_back({sequence, 0, heads, 0, plan.chunks(sequence)});
    return work;
  }
  int split = 1;
  for (split_chunks(plan, split, work); work.tasks.size() < enough && split < heads;)
    split_chunks(plan, split *= 2, work);
  return work;
}

}  // namespace chorale::tiled
