// The forward pass on AMX of sequences of few rows, a decode:
//
//     for each sequence (or each of its chunks, where there are few), on any thread
//       for each chunk, for each two slabs, for each KV head
//         keys straight from their pages, values paired on the way; at each step the memory is asked for a
//         few rows of the next two slabs, in the order in which pages hold them
//       merge
#include "implementations/cpu/amx_few.h"

#include <algorithm>
#include <array>

#include "base/aligned.h"
#include "base/threads.h"
#include "implementations/cpu/amx_hidden.h"
#include "implementations/cpu/amx_kernels.h"
#include "implementations/cpu/amx_programs.h"
#include "implementations/cpu/amx_state.h"
#include "implementations/cpu/few_tasks.h"
#include "implementations/cpu/finish.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/visibility.h"
#include "mask/program.h"
#include "simd/dot_tiles.h"

namespace chorale::tiled {
namespace {

using amx::chunk_slabs, amx::slab_keys, amx::State, amx::Waiting;

class AmxFew : amx::Pass {
 public:
  AmxFew(const TiledPlan& plan, const ForwardTensors& tensors)
      : Pass(plan, tensors), workers_(plan.threads()) {}

  void run() {
    const FewTasks work = few_tasks(plan_);
    if (!work.whole) return run_chunks(work);
    parallel_for(std::ssize(work.tasks), plan_.threads(), [&](std::int64_t i, int worker) {
      const FewTask& task = work.tasks[static_cast<std::size_t>(i)];
      const simd::DotScope scope = scope_of(task.sequence);
      run_sequence(task, at(worker));
    });
  }

 private:
  // One thread's memory.
  struct Worker {
    explicit Worker(const AmxFew& pass)
        : programs(pass.plan_),
          visibility(pass.plan_),
          scores(static_cast<std::size_t>(amx::score_elements)),
          p(static_cast<std::size_t>(2 * amx::tile_elements)),
          rows(static_cast<std::size_t>(amx::group_rows * amx::padded(pass.value_dim_))),
          gathered(static_cast<std::size_t>(2 * slab_keys * std::max(pass.dim_, pass.value_dim_))) {}
    amx::Programs programs;
    VisibilityComputer visibility;
    Visibility::Strip visible;    // of the chunk at hand
    AlignedVector<float> scores;  // of two slabs
    AlignedVector<bfloat16> p, queries, keys, values;
    amx::Prefetch prefetch;
    std::vector<State> totals;
    AlignedVector<float> rows;
    AlignedVector<bfloat16> gathered;
  };

  Worker& at(int index) { return workers_.at(index, *this); }

  simd::DotScope scope_of(int sequence) const {
    return simd::DotScope(simd::DotLevel::amx, static_cast<int>(plan_.sequence_rows(sequence)));
  }

  // Chunks one after the other, merged at once.
  void run_sequence(const FewTask& task, Worker& worker) {
    while (std::ssize(worker.totals) < 2 * task.heads) worker.totals.push_back(empty_state());
    State* chunk = worker.totals.data() + task.heads;
    for (int h = 0; h < task.heads; ++h) worker.totals[static_cast<std::size_t>(h)].reset();
    for (std::int64_t c = 0; c < task.chunks; ++c) {
      attend(task, c, chunk, worker);
      for (int h = 0; h < task.heads; ++h) merge(chunk[h], worker.totals[static_cast<std::size_t>(h)]);
    }
    for (int h = 0; h < task.heads; ++h)
      finish(task.sequence, h, worker.totals[static_cast<std::size_t>(h)], worker);
  }

  // Every chunk is a task, or one for some of its heads; then the chunks are merged in order: the same bits.
  void run_chunks(const FewTasks& work) {
    std::vector<State> states(work.states, empty_state());
    parallel_for(std::ssize(work.tasks), plan_.threads(), [&](std::int64_t i, int worker) {
      const FewTask& task = work.tasks[static_cast<std::size_t>(i)];
      const simd::DotScope scope = scope_of(task.sequence);
      attend(task, task.first_chunk, states.data() + task.state, at(worker));
    });
    parallel_for(std::ssize(work.sequences), plan_.threads(), [&](std::int64_t i, int worker) {
      const int sequence = work.sequences[static_cast<std::size_t>(i)];
      State total = empty_state();
      for (int h = 0; h < problem_.kv_heads; ++h) {
        total.reset();
        for (std::int64_t c = 0; c < plan_.chunks(sequence); ++c)
          merge(states[work.first_state[static_cast<std::size_t>(i)] +
                       static_cast<std::size_t>(c * problem_.kv_heads + h)],
                total);
        finish(sequence, h, total, at(worker));
      }
    });
  }

  State empty_state() const { return State(amx::group_rows * amx::padded(value_dim_)); }

  // The heads of one KV head, as the kernels for few rows see them.
  struct Head {
    KeyRows keys, values;
  };

  // One chunk under some KV heads, from the empty state: all heads of two slabs before the next slabs, since
  // their rows are neighbours in a page.
  void attend(const FewTask& task, std::int64_t chunk, State* states, Worker& worker) {
    const int sequence = task.sequence;
    worker.queries.resize(static_cast<std::size_t>(task.heads * amx::block_elements(dim_)));
    worker.keys.resize(static_cast<std::size_t>(2 * amx::block_elements(dim_)));
    worker.values.resize(static_cast<std::size_t>(2 * amx::block_elements(value_dim_)));
    std::vector<Head> heads;
    for (int h = 0; h < task.heads; ++h) {
      const int head = task.first_head + h;
      heads.push_back({{plan_, tensors_.k, tensors_.k_scale, sequence, head, false},
                       {plan_, tensors_.v, tensors_.v_scale, sequence, head, true}});
      amx::load_queries(plan_, tensors_.q, sequence, head, 0,
                        worker.queries.data() + h * amx::block_elements(dim_), worker.gathered.data());
      states[h].reset();
    }
    const std::int64_t slabs = plan_.blocks_of(plan_.keys(sequence), slab_keys);
    const std::int64_t first = chunk * chunk_slabs, last = std::min(slabs, first + chunk_slabs);
    const bool by_head = problem_.mask.program().uses(Program::Op::h);
    if (!by_head) worker.visibility.compute(sequence, task.first_head, 0, first, last, worker.visible);
    const auto is_hidden = [&](std::int64_t slab) {
      return !by_head && slab < last && all_empty(worker.visible.slabs.data() + slab - first, last - slab);
    };
    const std::int64_t end = std::min(plan_.keys(sequence), (task.first_chunk + task.chunks) * chunk_keys);
    amx::Prefetch& prefetch = worker.prefetch;
    const auto add_ahead = [&](std::int64_t slab) {
      prefetch.clear();
      if (!is_hidden(slab)) add_rows(task, heads[0], slab * slab_keys, end, prefetch);
    };
    if (chunk == task.first_chunk) add_ahead(first), prefetch.ask_rest();
    for (std::int64_t slab = first; slab < last; slab += 2) {
      add_ahead(slab + 2);
      if (!is_hidden(slab)) {
        // A head's scores, packing, softmax and values have about so many steps.
        const std::int64_t steps = 4 * dim_ / 32 + 2 * slab_keys + value_dim_ / 16;
        prefetch.spread(task.heads * steps);
        const Two two = locate(heads[0], slab, std::min<std::int64_t>(2, last - slab));
        for (int h = 0; h < task.heads; ++h) {
          if (by_head)
            worker.visibility.compute(sequence, task.first_head + h, 0, slab, slab + two.slabs,
                                      worker.visible);
          const std::int32_t* seen = worker.visible.slabs.data() + (by_head ? 0 : slab - first);
          if (!all_empty(seen, two.slabs))
            attend_two(task, h, two, seen, heads[static_cast<std::size_t>(h)], states[h], worker);
        }
      }
      prefetch.ask_rest();
    }
  }

  // Whether the mask hides the next two of `slabs`.
  static bool all_empty(const std::int32_t* slabs, std::int64_t left) {
    return std::all_of(slabs, slabs + std::min<std::int64_t>(2, left),
                       [](std::int32_t slab) { return slab == Visibility::empty; });
  }

  // Two slabs of keys before `end`, of all heads, in the order in which a page holds them: the processor then
  // sees a stream and runs ahead of it.
  void add_rows(const FewTask& task, const Head& head, std::int64_t first, std::int64_t end,
                amx::Prefetch& prefetch) const {
    const std::int64_t count = std::min(2 * slab_keys, end - first);
    std::array<const std::byte*, 2 * slab_keys> rows;
    for (const KeyRows* of : {&head.keys, &head.values}) {
      of->addresses(first, count, rows.data());
      const bool together = of->head_bytes() == of->row_bytes();
      for (std::int64_t i = 0; i < count; ++i)
        for (int h = 0; h < task.heads; h += together ? task.heads : 1)
          prefetch.add(rows[static_cast<std::size_t>(i)] + h * of->head_bytes(),
                       of->row_bytes() * (together ? task.heads : 1));
    }
  }

  // One or two slabs: where the rows of a task's first head lie, and how far apart those of a tile are (0:
  // not evenly).
  struct Two {
    std::int64_t slab, slabs, first, count;
    std::array<const std::byte*, 2 * slab_keys> keys, values;
    std::array<std::int64_t, 4> strides{};
  };
  Two locate(const Head& head, std::int64_t slab, std::int64_t slabs) const {
    Two two;
    two.slab = slab, two.slabs = slabs, two.first = slab * slab_keys;
    two.count = std::min(slabs * slab_keys, head.keys.keys() - two.first);
    head.keys.addresses(two.first, two.count, two.keys.data());
    head.values.addresses(two.first, two.count, two.values.data());
    for (std::int64_t t = 0; (t + 1) * 16 <= two.count && dim_ % 32 == 0; ++t) {
      const std::byte* const* rows = two.keys.data() + t * 16;
      bool even = true;
      for (int i = 2; i < 16; ++i) even &= rows[i] - rows[i - 1] == rows[1] - rows[0];
      if (even) two.strides[static_cast<std::size_t>(t)] = rows[1] - rows[0];
    }
    return two;
  }
  // Rows of the h-th head of a task, gathered where they do not lie in the tensor.
  static void find_rows(const KeyRows& of, const Two& two, const std::byte* const* first_head, int h,
                        const bfloat16** rows, bfloat16* gathered) {
    if (!of.is_direct()) return of.rows(two.first, two.count, rows, gathered);
    for (std::int64_t i = 0; i < two.count; ++i)
      rows[i] = reinterpret_cast<const bfloat16*>(first_head[i] + h * of.head_bytes());
  }

  // One or two slabs under one KV head.
  void attend_two(const FewTask& task, int h, const Two& two, const std::int32_t* seen, const Head& head,
                  State& state, Worker& worker) {
    std::array<const bfloat16*, 2 * slab_keys> rows;
    amx::Prefetch& prefetch = worker.prefetch;
    std::array<amx::KeyTile, 4> tiles;
    find_rows(head.keys, two, two.keys.data(), h, rows.data(), worker.gathered.data());
    locate_tiles(rows.data(), two, head.keys.is_direct(), tiles, worker);
    amx::scores_of_few(tiles.data(), (two.count + 15) / 16,
                       worker.queries.data() + h * amx::block_elements(dim_), dim_, worker.scores.data(),
                       prefetch);
    find_rows(head.values, two, two.values.data(), h, rows.data(), worker.gathered.data());
    std::array<bool, 2> finite{};
    for (std::int64_t s = 0; s < two.slabs; ++s)
      finite[static_cast<std::size_t>(s)] = amx::pack_value_pairs(
          rows.data() + s * slab_keys, std::min(slab_keys, two.count - s * slab_keys), value_dim_,
          worker.values.data() + s * amx::block_elements(value_dim_), seen[s] != Visibility::full, prefetch);
    Waiting waiting;
    for (std::int64_t s = 0; s < two.slabs; ++s) {
      if (seen[s] == Visibility::empty) continue;
      float* scores = worker.scores.data() + s * slab_keys * amx::group_rows;
      const std::uint32_t* words =
          seen[s] == Visibility::full ? nullptr : worker.visible.words.data() + seen[s];
      worker.programs.apply(
          {task.sequence, task.first_head + h, 0, plan_.sequence_rows(task.sequence), two.slab + s}, scores,
          nullptr);
      if (words != nullptr) amx::hide_from_few(words, scores);
      const bfloat16* p = amx::make_probabilities(
          amx::unseen_of_few(state.lanes), most_sum_, waiting, worker.p.data(), amx::tile_elements,
          [&](amx::Rows of) { raise(scores, of, state, waiting, worker); },
          [&](bfloat16* to, float most, bool) {
            return amx::softmax_of_few(scores, plan_.log2_factor(), most, state.lanes, to, prefetch);
          });
      const bfloat16* values = worker.values.data() + s * amx::block_elements(value_dim_);
      if (words != nullptr && !finite[static_cast<std::size_t>(s)]) {
        const AlignedVector<bfloat16> slab_p(p, p + amx::tile_elements);
        add_values(waiting, state, worker);
        amx::add_visible_values_to_few(words, values, slab_p.data(), value_dim_, state.out.data());
      } else {
        waiting.values[static_cast<std::size_t>(waiting.count++)] = values;
      }
    }
    add_values(waiting, state, worker);
  }

  // Tiles of 16 keys: where they lie if that is how the tile unit can load them, else packed.
  void locate_tiles(const bfloat16* const* rows, const Two& two, bool direct,
                    std::array<amx::KeyTile, 4>& tiles, Worker& worker) const {
    for (std::int64_t t = 0; t * 16 < two.count; ++t) {
      auto& tile = tiles[static_cast<std::size_t>(t)];
      const std::int64_t stride = two.strides[static_cast<std::size_t>(t)];
      if (direct && stride != 0) {
        tile = {rows[t * 16], stride / static_cast<std::int64_t>(sizeof(bfloat16)), 32};
        continue;
      }
      bfloat16* packed = worker.keys.data() + t * 16 * amx::padded(dim_);
      amx::pack_key_tile(rows + t * 16, std::min<std::int64_t>(16, two.count - t * 16), dim_, packed);
      tile = {packed, 32, amx::tile_elements};
    }
  }

  void raise(const float* scores, amx::Rows rows, State& state, Waiting& waiting, Worker& worker) {
    alignas(64) float scales[amx::group_rows];
    if (!amx::raise_few(scores, plan_.log2_factor(), rows, state.lanes, scales)) return;
    add_values(waiting, state, worker);
    if (!is_mutant(plan_.mutant(), Mutant::skip_rescale))
      amx::rescale_few(scales, value_dim_, state.out.data());
  }

  void add_values(Waiting& waiting, State& state, Worker& worker) {
    if (waiting.count > 0)
      amx::add_values_to_few(waiting.values.data(), waiting.count, worker.p.data(), value_dim_,
                             state.out.data(), worker.prefetch);
    waiting.count = 0;
  }

  void merge(const State& later, State& total) {
    amx::merge_few(later.lanes, later.out.data(), plan_.log2_factor(), value_dim_, total.lanes,
                   total.out.data());
  }

  void finish(int sequence, int kv_head, const State& total, Worker& worker) {
    const std::int64_t dim = amx::padded(value_dim_);
    for (std::int64_t c = 0; c < dim; c += 16)
      for (std::int64_t r = 0; r < amx::group_rows; ++r)
        std::copy_n(total.out.data() + c / 16 * 256 + r * 16, 16, worker.rows.data() + r * dim + c);
    finish_rows(plan_, tensors_, plan_.sequence_rows(sequence), [&](std::int64_t r) {
      return FinishedRow{plan_.query_of_row(sequence, r),
                         plan_.head_of_row(kv_head, r),
                         {total.lanes.reference[r], total.lanes.sum[r], worker.rows.data() + r * dim}};
    });
  }

  PerWorker<Worker> workers_;
};

}  // namespace

void amx_few(const TiledPlan& plan, const ForwardTensors& tensors) { AmxFew(plan, tensors).run(); }

}  // namespace chorale::tiled
