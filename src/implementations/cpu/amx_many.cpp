// The forward pass on AMX of sequences of many rows:
//
//     for each group of strips of a sequence and KV head, on any thread
//       for each chunk of 1024 keys
//         for each strip of 32 rows
//           for each slab of 32 keys that the strip sees
//             pack the next slab and the next strip's queries, once a group
//             exponentials of this slab, while the tile unit computes the scores of the next
//           probabilities times values, once for all slabs of the chunk
//           merge the chunk into the strip's total; finish the strip after its last chunk
#include "implementations/cpu/amx_many.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/aligned.h"
#include "base/threads.h"
#include "implementations/cpu/amx_hidden.h"
#include "implementations/cpu/amx_kernels.h"
#include "implementations/cpu/amx_programs.h"
#include "implementations/cpu/amx_state.h"
#include "implementations/cpu/finish.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/visibility.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

using amx::chunk_slabs, amx::slab_keys, amx::strip_rows, amx::State, amx::Waiting;

class AmxMany : amx::Pass {
 public:
  AmxMany(const TiledPlan& plan, const ForwardTensors& tensors)
      : Pass(plan, tensors),
        past_caches_(plan.batch().total_q() * problem_.query_heads * value_dim_ >= many_outputs),
        workers_(plan.threads()) {}

  void run() {
    std::vector<Group> groups;
    // Keys are packed once a group, so groups are large; but there should be some for every thread.
    for (std::int64_t most = 128; most >= 4; most /= 2) {
      groups.clear();
      for (int sequence = 0; sequence < plan_.batch().sequences(); ++sequence) {
        if (plan_.sequence_rows(sequence) <= few_rows) continue;
        const std::int64_t strips = plan_.strips(sequence);
        for (std::int64_t first = 0; first < strips; first += most)
          for (int head = 0; head < problem_.kv_heads; ++head)
            groups.push_back({sequence, head, first, std::min(most, strips - first)});
      }
      if (static_cast<std::int64_t>(groups.size()) >= 8 * plan_.threads()) break;
    }
    // The longest first, so that threads end together.
    for (Group& group : groups)
      for (std::int64_t i = 0; i < group.strips; ++i)
        group.cost += plan_.visibility().strip(group.sequence, group.kv_head, group.first + i).visible;
    std::stable_sort(groups.begin(), groups.end(),
                     [](const Group& x, const Group& y) { return x.cost > y.cost; });
    parallel_for(static_cast<std::int64_t>(groups.size()), plan_.threads(), [&](std::int64_t i, int worker) {
      const simd::DotScope scope(simd::DotLevel::amx);
      attend(groups[static_cast<std::size_t>(i)], at(worker));
      if (past_caches_) std::atomic_thread_fence(std::memory_order_seq_cst);
    });
  }

 private:
  // So many outputs, of 2 bytes, have left the second-level cache before anybody reads them.
  static constexpr std::int64_t many_outputs = std::int64_t{1} << 21;

  // One strip of a group against one slab.
  struct Step {
    std::int64_t strip, slab;
    bool first;  // of the strip in this chunk
  };

  // One thread's memory.
  struct Worker {
    explicit Worker(const AmxMany& pass)
        : programs(pass.plan_),
          gathered(static_cast<std::size_t>(slab_keys * std::max(pass.dim_, pass.value_dim_))),
          chunk(strip_rows * amx::padded(pass.value_dim_)) {
      for (auto& buffer : scores) buffer.resize(static_cast<std::size_t>(amx::score_elements));
      p.resize(static_cast<std::size_t>(chunk_slabs * slab_keys * strip_rows));
    }
    amx::Programs programs;
    AlignedVector<float> scores[2];
    AlignedVector<bfloat16> p, queries, keys, values;
    std::array<std::int8_t, chunk_slabs> packed;  // 0: not yet, 1: finite values, 2: not
    std::vector<State> totals;
    std::vector<Step> steps;  // of a chunk
    AlignedVector<bfloat16> gathered;
    State chunk;
  };

  Worker& at(int index) { return workers_.at(index, *this); }

  struct Group {
    int sequence, kv_head;
    std::int64_t first, strips;
    std::int64_t cost = 0;
  };

  void attend(const Group& group, Worker& worker) {
    worker.queries.resize(static_cast<std::size_t>(group.strips * amx::block_elements(dim_)));
    worker.keys.resize(static_cast<std::size_t>(chunk_slabs * amx::block_elements(dim_)));
    worker.values.resize(static_cast<std::size_t>(chunk_slabs * amx::block_elements(value_dim_)));
    for (auto strip = static_cast<std::int64_t>(worker.totals.size()); strip < group.strips; ++strip)
      worker.totals.emplace_back(strip_rows * amx::padded(value_dim_));
    for (std::int64_t i = 0; i < group.strips; ++i) {
      worker.totals[static_cast<std::size_t>(i)].empty = true;
      if (visible(group, i).end == 0) finish_strip(group, i, worker);
    }
    std::int64_t first = plan_.keys(group.sequence), end = 0;  // slabs that some strip sees
    for (std::int64_t i = 0; i < group.strips; ++i) {
      if (visible(group, i).end > 0) first = std::min(first, visible(group, i).first);
      end = std::max(end, visible(group, i).end);
    }
    for (std::int64_t chunk = first / chunk_slabs; chunk * chunk_slabs < end; ++chunk)
      attend_chunk(group, chunk * chunk_slabs, std::min(end, (chunk + 1) * chunk_slabs), worker);
  }

  const Visibility::Strip& visible(const Group& group, std::int64_t index) const {
    return plan_.visibility().strip(group.sequence, group.kv_head, group.first + index);
  }

  void finish_strip(const Group& group, std::int64_t index, Worker& worker) {
    State& total = worker.totals[static_cast<std::size_t>(index)];
    if (total.empty) total.reset();
    const std::int64_t first = (group.first + index) * strip_rows,
                       count = std::min(strip_rows, plan_.sequence_rows(group.sequence) - first);
    std::array<float, strip_rows> scales, divisors, maxima, logarithms;
    std::array<bfloat16*, strip_rows> rows;
    scales.fill(1);
    divisors.fill(1);
    const TensorView& out = tensors_.out;
    for (std::int64_t r = 0; r < count; ++r) {
      const auto i = static_cast<std::size_t>(r);
      const std::int64_t head = plan_.head_of_row(group.kv_head, first + r);
      const Normaliser row = normaliser(plan_, tensors_, head, total.lanes.reference[r], total.lanes.sum[r]);
      scales[i] = row.scale, divisors[i] = row.divisor, maxima[i] = row.maximum;
      rows[i] = static_cast<bfloat16*>(out.data) +
                plan_.query_of_row(group.sequence, first + r) * out.stride[0] + head * out.stride[1];
    }
    if (problem_.sinks) amx::rescale(scales.data(), value_dim_, total.out.data());
    amx::store_quotients(total.out.data(), divisors.data(), count, value_dim_, past_caches_, rows.data());
    simd::log(divisors.data(), logarithms.data(), count);
    for (std::int64_t r = 0; r < count; ++r) {
      const auto i = static_cast<std::size_t>(r);
      store_lse(tensors_, plan_.query_of_row(group.sequence, first + r),
                plan_.head_of_row(group.kv_head, first + r), maxima[i] + logarithms[i]);
    }
  }

  // The queries and the slab of a step, packed at first use.
  void pack(const Group& group, const Step& step, Worker& worker) {
    if (step.first && worker.totals[static_cast<std::size_t>(step.strip)].empty)
      amx::load_queries(plan_, tensors_.q, group.sequence, group.kv_head, group.first + step.strip,
                        worker.queries.data() + step.strip * amx::block_elements(dim_),
                        worker.gathered.data());
    auto& packed = worker.packed[static_cast<std::size_t>(step.slab % chunk_slabs)];
    if (packed != 0) return;
    const std::int64_t first = step.slab * slab_keys,
                       count = std::min(slab_keys, plan_.keys(group.sequence) - first);
    std::array<const bfloat16*, slab_keys> rows;
    const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, group.sequence, group.kv_head, false);
    const KeyRows values(plan_, tensors_.v, tensors_.v_scale, group.sequence, group.kv_head, true);
    keys.rows(first, count, rows.data(), worker.gathered.data());
    amx::pack_keys(rows.data(), count, dim_, keys_of(step.slab, worker));
    values.rows(first, count, rows.data(), worker.gathered.data());
    packed = amx::pack_values(rows.data(), count, value_dim_, values_of(step.slab, worker)) ? 1 : 2;
  }

  const bfloat16* queries_of(std::int64_t strip, const Worker& worker) const {
    return worker.queries.data() + strip * amx::block_elements(dim_);
  }
  bfloat16* keys_of(std::int64_t slab, Worker& worker) const {
    return worker.keys.data() + slab % chunk_slabs * amx::block_elements(dim_);
  }
  bfloat16* values_of(std::int64_t slab, Worker& worker) const {
    return worker.values.data() + slab % chunk_slabs * amx::block_elements(value_dim_);
  }

  // All strips against slabs [first, last) of one chunk. While the exponentials of a strip and slab are
  // computed, the tile unit computes the scores of the next, be it of the same strip or not.
  void attend_chunk(const Group& group, std::int64_t first, std::int64_t last, Worker& worker) {
    worker.packed.fill(0);
    worker.steps.clear();
    for (std::int64_t i = 0; i < group.strips; ++i) {
      const Visibility::Strip& strip = visible(group, i);
      for (std::int64_t slab = std::max(first, strip.first); slab < std::min(last, strip.end); ++slab)
        if (strip.slabs[static_cast<std::size_t>(slab)] != Visibility::empty)
          worker.steps.push_back({i, slab, worker.steps.empty() || worker.steps.back().strip != i});
    }
    Waiting waiting;
    for (std::size_t n = 0; n < worker.steps.size(); ++n) {
      const Step& step = worker.steps[n];
      const Step* next = n + 1 < worker.steps.size() ? &worker.steps[n + 1] : nullptr;
      State& total = worker.totals[static_cast<std::size_t>(step.strip)];
      State& state = total.empty ? total : worker.chunk;  // the first chunk is its own total
      if (n == 0) {
        pack(group, step, worker);
        amx::scores(keys_of(step.slab, worker), queries_of(step.strip, worker), dim_,
                    worker.scores[0].data());
      }
      if (step.first) {
        amx::clear(state.lanes);
        waiting = {};
      }
      if (next != nullptr) pack(group, *next, worker);
      attend_slab(group, step, next, worker.scores[n % 2].data(), worker.scores[(n + 1) % 2].data(), state,
                  waiting, worker);
      if (next != nullptr && !next->first) continue;
      add_values(state, waiting, worker);
      if (!total.empty)
        amx::merge(state.lanes, state.out.data(), plan_.log2_factor(), value_dim_, total.lanes,
                   total.out.data());
      total.empty = false;
      if (visible(group, step.strip).end <= last) finish_strip(group, step.strip, worker);
    }
  }

  // One strip and slab whose scores are there; meanwhile the scores of the next, if there is one.
  void attend_slab(const Group& group, const Step& step, const Step* next, float* scores, float* next_scores,
                   State& state, Waiting& waiting, Worker& worker) {
    const Visibility::Strip& strip = visible(group, step.strip);
    const std::int32_t seen = strip.slabs[static_cast<std::size_t>(step.slab)];
    const std::uint32_t* words = seen == Visibility::full ? nullptr : strip.words.data() + seen;
    const std::int64_t first_row = (group.first + step.strip) * strip_rows;
    const std::int64_t rows = std::min(strip_rows, plan_.sequence_rows(group.sequence) - first_row);
    worker.programs.apply({group.sequence, group.kv_head, first_row, rows, step.slab}, scores, nullptr);
    if (words != nullptr) amx::hide(words, scores);
    const bfloat16* p = amx::make_probabilities(
        amx::unseen(state.lanes), most_sum_, waiting, worker.p.data(), slab_keys * strip_rows,
        [&](amx::Rows of) { raise(scores, of, state, waiting, worker); },
        [&](bfloat16* to, float most, bool again) {
          const bool beside = next != nullptr && !again;
          return amx::softmax(scores, plan_.log2_factor(), most, state.lanes, to,
                              beside ? keys_of(next->slab, worker) : nullptr,
                              beside ? queries_of(next->strip, worker) : nullptr, dim_, next_scores);
        });
    if (words != nullptr && worker.packed[static_cast<std::size_t>(step.slab % chunk_slabs)] == 2)
      add_visible_values(words, values_of(step.slab, worker), p, state, waiting, worker);
    else
      waiting.values[static_cast<std::size_t>(waiting.count++)] = values_of(step.slab, worker);
  }

  void raise(const float* scores, amx::Rows rows, State& state, Waiting& waiting, Worker& worker) {
    alignas(64) float scales[strip_rows];
    if (!amx::raise(scores, plan_.log2_factor(), rows, state.lanes, scales)) return;
    add_values(state, waiting, worker);
    if (!is_mutant(plan_.mutant(), Mutant::skip_rescale)) amx::rescale(scales, value_dim_, state.out.data());
  }

  void add_values(State& state, Waiting& waiting, Worker& worker) {
    if (waiting.count == 0) return;
    amx::add_values(waiting.values.data(), waiting.count, worker.p.data(), value_dim_, state.out.data(),
                    waiting.started);
    waiting.started = true;
    waiting.count = 0;
  }

  // The slab whose probabilities come next in worker.p must not be multiplied with the others.
  void add_visible_values(const std::uint32_t* words, const bfloat16* values, const bfloat16* p, State& state,
                          Waiting& waiting, Worker& worker) {
    const AlignedVector<bfloat16> slab_p(p, p + slab_keys * strip_rows);
    add_values(state, waiting, worker);
    if (!waiting.started) std::fill(state.out.begin(), state.out.end(), 0.0f);
    waiting.started = true;
    amx::add_visible_values(words, values, slab_p.data(), value_dim_, state.out.data());
  }

  bool past_caches_;
  PerWorker<Worker> workers_;
};

}  // namespace

void amx_many(const TiledPlan& plan, const ForwardTensors& tensors) { AmxMany(plan, tensors).run(); }

}  // namespace chorale::tiled
