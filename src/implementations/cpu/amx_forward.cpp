// Two schedules, one order of arithmetic:
//
//     many rows    for each group of strips of a sequence and KV head, on any thread
//                    for each chunk of 1024 keys
//                      for each strip of 32 rows
//                        for each slab of 32 keys that the strip sees
//                          pack the slab, once a group
//                          exponentials of this slab, while the tile unit computes the scores of the next,
//                          and the memory is asked for slabs that will be packed
//                        probabilities times values, once for all slabs of the chunk
//                        merge the chunk into the strip's total; finish the strip after its last chunk
//     few rows     for each sequence (or each of its chunks, where there are few), on any thread
//     (a decode)     for each chunk, for each two slabs, for each KV head
//                      keys straight from their pages, values paired on the way; at each step the memory is
//                      asked for a few rows of the next two slabs, in the order in which pages hold them
//                    merge
#include "implementations/cpu/amx_forward.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/aligned.h"
#include "base/threads.h"
#include "implementations/cpu/amx_hidden.h"
#include "implementations/cpu/amx_kernels.h"
#include "implementations/cpu/amx_programs.h"
#include "implementations/cpu/finish.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/query_rows.h"
#include "implementations/cpu/visibility.h"
#include "mask/program.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

constexpr std::int64_t strip_rows = amx::strip_rows, slab_keys = amx::slab_keys;
constexpr std::int64_t chunk_slabs = chunk_keys / slab_keys;

struct State {
  explicit State(std::int64_t out_elements) : out(static_cast<std::size_t>(out_elements)) {
    amx::clear(lanes);
  }
  void reset() {
    amx::clear(lanes);
    std::fill(out.begin(), out.end(), 0.0f);
  }
  amx::Lanes lanes;
  bool empty = true;  // many rows: nothing was added, and out holds anything
  AlignedVector<float> out;
};

// Probabilities of slabs that wait to be multiplied with their values, so that the accumulators are loaded
// and stored seldom. What waits changes no bit.
struct Waiting {
  std::array<const bfloat16*, chunk_slabs> values;
  std::int64_t count = 0;
  bool started = false;  // out holds something
};

class AmxForward {
 public:
  AmxForward(const TiledPlan& plan, const ForwardTensors& tensors)
      : plan_(plan),
        problem_(plan.problem()),
        tensors_(tensors),
        dim_(problem_.head_dim),
        value_dim_(problem_.value_dim()),
        raise_above_(is_mutant(plan.mutant(), Mutant::skip_rescale) ? 0 : amx::raise_above),
        workers_(static_cast<std::size_t>(plan.threads())) {}

  void run() {
    run_many();
    run_few();
  }

 private:
  // One strip of a group against one slab.
  struct Step {
    std::int64_t strip, slab;
  };

  // One thread's memory.
  struct Worker {
    explicit Worker(const AmxForward& pass)
        : programs(pass.plan_),
          visibility(pass.plan_),
          chunk(strip_rows * amx::padded(pass.value_dim_)),
          rows(static_cast<std::size_t>(strip_rows * amx::padded(pass.value_dim_))),
          gathered(static_cast<std::size_t>(2 * slab_keys * std::max(pass.dim_, pass.value_dim_))) {
      for (auto& buffer : scores) buffer.resize(static_cast<std::size_t>(amx::score_elements));
      p.resize(static_cast<std::size_t>(chunk_slabs * slab_keys * strip_rows));
    }
    amx::Programs programs;
    VisibilityComputer visibility;
    Visibility::Strip visible;  // few rows: of the chunk at hand
    AlignedVector<float> scores[2];
    AlignedVector<bfloat16> p, queries, keys, values;
    amx::Prefetch prefetch;
    std::array<std::int8_t, chunk_slabs> packed;  // 0: not yet, 1: finite values, 2: not
    State chunk;
    std::vector<State> totals;
    std::vector<Step> steps;  // of a chunk
    std::int64_t asked;       // slabs before this one were asked for or packed
    std::int64_t packed_end;  // past the slab that was packed last
    AlignedVector<float> rows;
    AlignedVector<bfloat16> gathered;
  };

  Worker& at(int index) {
    auto& worker = workers_[static_cast<std::size_t>(index)];
    if (!worker) worker.emplace(*this);
    return *worker;
  }

  // ---- many rows

  struct Group {
    int sequence, kv_head;
    std::int64_t first, strips;
    std::int64_t cost = 0;
  };

  void run_many() {
    std::vector<Group> groups;
    // Keys are packed once a group, so groups are large; but there should be some for every thread.
    for (std::int64_t most = 32; most >= 4; most /= 2) {
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
    });
  }

  void attend(const Group& group, Worker& worker) {
    worker.queries.resize(static_cast<std::size_t>(group.strips * amx::block_elements(dim_)));
    worker.keys.resize(static_cast<std::size_t>(chunk_slabs * amx::block_elements(dim_)));
    worker.values.resize(static_cast<std::size_t>(chunk_slabs * amx::block_elements(value_dim_)));
    worker.prefetch.clear();
    worker.asked = worker.packed_end = 0;
    for (auto strip = static_cast<std::int64_t>(worker.totals.size()); strip < group.strips; ++strip)
      worker.totals.emplace_back(strip_rows * amx::padded(value_dim_));
    for (std::int64_t i = 0; i < group.strips; ++i) {
      worker.totals[static_cast<std::size_t>(i)].empty = true;
      if (i + 1 < group.strips) ask_for_queries(group, i + 1);
      load_queries(group.sequence, group.kv_head, group.first + i,
                   worker.queries.data() + i * amx::block_elements(dim_), worker);
      if (visible(group, i).end == 0) finish_strip(group, i, worker);
    }
    std::int64_t first = plan_.keys(group.sequence), end = 0;  // slabs that some strip sees
    for (std::int64_t i = 0; i < group.strips; ++i) {
      if (visible(group, i).end > 0) first = std::min(first, visible(group, i).first);
      end = std::max(end, visible(group, i).end);
    }
    for (std::int64_t chunk = first / chunk_slabs; chunk * chunk_slabs < end; ++chunk)
      attend_chunk(group, chunk * chunk_slabs, std::min(end, (chunk + 1) * chunk_slabs), end, worker);
  }

  const Visibility::Strip& visible(const Group& group, std::int64_t index) const {
    return plan_.visibility().strip(group.sequence, group.kv_head, group.first + index);
  }

  // Asks the memory for a strip's query rows.
  void ask_for_queries(const Group& group, std::int64_t index) const {
    const TensorView& q = tensors_.q;
    const std::int64_t first = (group.first + index) * strip_rows,
                       count = std::min(strip_rows, plan_.sequence_rows(group.sequence) - first);
    for (std::int64_t r = 0; r < count; ++r) {
      const bfloat16* row = static_cast<const bfloat16*>(q.data) +
                            plan_.query_of_row(group.sequence, first + r) * q.stride[0] +
                            plan_.head_of_row(group.kv_head, first + r) * q.stride[1];
      for (std::int64_t c = 0; c < dim_; c += 32) __builtin_prefetch(row + c, 0, 2);
    }
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
    amx::store_quotients(total.out.data(), divisors.data(), count, value_dim_, rows.data());
    simd::log(divisors.data(), logarithms.data(), count);
    for (std::int64_t r = 0; r < count; ++r) {
      const auto i = static_cast<std::size_t>(r);
      store_lse(tensors_, plan_.query_of_row(group.sequence, first + r),
                plan_.head_of_row(group.kv_head, first + r), maxima[i] + logarithms[i]);
    }
  }

  void load_queries(int sequence, int kv_head, std::int64_t strip, bfloat16* out, Worker& worker) {
    std::array<const bfloat16*, strip_rows> rows;
    const std::int64_t count = locate_rows(plan_, tensors_.q, sequence, kv_head, strip * strip_rows,
                                           strip_rows, rows.data(), worker.gathered.data());
    amx::pack_queries(rows.data(), count, dim_, out);
  }

  static bool is_packed(std::int64_t slab, const Worker& worker) {
    return worker.packed[static_cast<std::size_t>(slab % chunk_slabs)] != 0;
  }

  // A slab of the chunk, packed at first use. `another`: so will be the one after it, soon.
  void pack(const Group& group, std::int64_t slab, bool another, Worker& worker) {
    if (is_packed(slab, worker)) return;
    auto& packed = worker.packed[static_cast<std::size_t>(slab % chunk_slabs)];
    const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, group.sequence, group.kv_head, false);
    const KeyRows values(plan_, tensors_.v, tensors_.v_scale, group.sequence, group.kv_head, true);
    const std::int64_t first = slab * slab_keys,
                       count = std::min(slab_keys, plan_.keys(group.sequence) - first);
    const auto locate = another ? &KeyRows::locate : &KeyRows::rows;
    worker.asked = std::max(worker.asked, slab + (another ? 2 : 1));
    worker.packed_end = slab + 1;
    std::array<const bfloat16*, slab_keys> rows;
    (keys.*locate)(first, count, rows.data(), worker.gathered.data());
    amx::pack_keys(rows.data(), count, dim_, keys_of(slab, worker));
    (values.*locate)(first, count, rows.data(), worker.gathered.data());
    packed = amx::pack_values(rows.data(), count, value_dim_, values_of(slab, worker)) ? 1 : 2;
  }

  // Asks the memory for some lines of the slabs that will be packed next. Not far ahead: rows at multiples of
  // a power of two fall into few of a cache's sets.
  void ask_ahead(const Group& group, std::int64_t end, Worker& worker) {
    constexpr std::int64_t lines = 16, most_ahead = 2;
    const std::int64_t last = std::min(end, worker.packed_end + most_ahead);
    if (worker.prefetch.is_done() && worker.asked < last) {
      worker.prefetch.clear();
      add_rows(KeyRows(plan_, tensors_.k, tensors_.k_scale, group.sequence, group.kv_head, false),
               worker.asked, worker.prefetch);
      add_rows(KeyRows(plan_, tensors_.v, tensors_.v_scale, group.sequence, group.kv_head, true),
               worker.asked, worker.prefetch);
      ++worker.asked;
    }
    worker.prefetch.ask(lines);
  }
  void add_rows(const KeyRows& of, std::int64_t slab, amx::Prefetch& prefetch) const {
    std::array<const std::byte*, slab_keys> rows;
    const std::int64_t count = std::min(slab_keys, of.keys() - slab * slab_keys);
    of.addresses(slab * slab_keys, count, rows.data());
    for (std::int64_t i = 0; i < count; ++i) prefetch.add(rows[static_cast<std::size_t>(i)], of.row_bytes());
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
  void attend_chunk(const Group& group, std::int64_t first, std::int64_t last, std::int64_t end,
                    Worker& worker) {
    worker.packed.fill(0);
    worker.steps.clear();
    for (std::int64_t i = 0; i < group.strips; ++i) {
      const Visibility::Strip& strip = visible(group, i);
      for (std::int64_t slab = std::max(first, strip.first); slab < std::min(last, strip.end); ++slab)
        if (strip.slabs[static_cast<std::size_t>(slab)] != Visibility::empty)
          worker.steps.push_back({i, slab});
    }
    Waiting waiting;
    for (std::size_t n = 0; n < worker.steps.size(); ++n) {
      const Step& step = worker.steps[n];
      const Step* next = n + 1 < worker.steps.size() ? &worker.steps[n + 1] : nullptr;
      State& total = worker.totals[static_cast<std::size_t>(step.strip)];
      State& state = total.empty ? total : worker.chunk;  // the first chunk is its own total
      if (n == 0) {
        pack(group, step.slab, true, worker);
        amx::scores(keys_of(step.slab, worker), queries_of(step.strip, worker), dim_,
                    worker.scores[0].data());
      }
      if (n == 0 || worker.steps[n - 1].strip != step.strip) {
        amx::clear(state.lanes);
        waiting = {};
      }
      if (next != nullptr)
        pack(group, next->slab, n + 2 < worker.steps.size() && !is_packed(worker.steps[n + 2].slab, worker),
             worker);
      ask_ahead(group, end, worker);
      attend_slab(group, step, next, worker.scores[n % 2].data(), worker.scores[(n + 1) % 2].data(), state,
                  waiting, worker);
      if (next != nullptr && next->strip == step.strip) continue;
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
    raise(scores, state, waiting, worker);
    bfloat16* p = worker.p.data() + waiting.count * slab_keys * strip_rows;
    amx::softmax(scores, plan_.log2_factor(), state.lanes, p,
                 next != nullptr ? keys_of(next->slab, worker) : nullptr,
                 next != nullptr ? queries_of(next->strip, worker) : nullptr, dim_, next_scores);
    if (words != nullptr && worker.packed[static_cast<std::size_t>(step.slab % chunk_slabs)] == 2)
      add_visible_values(words, values_of(step.slab, worker), p, state, waiting, worker);
    else
      waiting.values[static_cast<std::size_t>(waiting.count++)] = values_of(step.slab, worker);
  }

  void raise(const float* scores, State& state, Waiting& waiting, Worker& worker) {
    alignas(64) float scales[strip_rows];
    if (!amx::raise(scores, plan_.log2_factor(), raise_above_, state.lanes, scales)) return;
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

  // ---- few rows

  struct Few {
    int sequence, first_head, heads;
    std::int64_t first_chunk, chunks;
    std::size_t state = 0;  // of its first chunk and head, where chunks are merged later
  };

  void run_few() {
    std::vector<int> sequences;
    for (int sequence = 0; sequence < plan_.batch().sequences(); ++sequence)
      if (plan_.sequence_rows(sequence) <= few_rows && plan_.sequence_rows(sequence) > 0)
        sequences.push_back(sequence);
    if (sequences.empty()) return;
    std::stable_sort(sequences.begin(), sequences.end(),
                     [&](int x, int y) { return plan_.keys(x) > plan_.keys(y); });
    const auto enough = static_cast<std::size_t>(4 * plan_.threads());
    if (plan_.threads() == 1 || sequences.size() >= enough) {
      parallel_for(static_cast<std::int64_t>(sequences.size()), plan_.threads(),
                   [&](std::int64_t i, int worker) {
                     const int sequence = sequences[static_cast<std::size_t>(i)];
                     const simd::DotScope scope = few_scope(sequence);
                     run_sequence({sequence, 0, problem_.kv_heads, 0, plan_.chunks(sequence)}, at(worker));
                   });
      return;
    }
    run_chunks(sequences, enough);
  }

  simd::DotScope few_scope(int sequence) const {
    return simd::DotScope(simd::DotLevel::amx, static_cast<int>(plan_.sequence_rows(sequence)));
  }

  // Chunks one after the other, merged at once.
  void run_sequence(const Few& few, Worker& worker) {
    reserve_states(2 * few.heads, worker);
    State* chunk = worker.totals.data() + few.heads;
    for (int h = 0; h < few.heads; ++h) worker.totals[static_cast<std::size_t>(h)].reset();
    for (std::int64_t c = 0; c < few.chunks; ++c) {
      attend_few(few, c, chunk, worker);
      for (int h = 0; h < few.heads; ++h) merge(chunk[h], worker.totals[static_cast<std::size_t>(h)]);
    }
    for (int h = 0; h < few.heads; ++h)
      finish_few(few.sequence, h, worker.totals[static_cast<std::size_t>(h)], worker);
  }

  // Every chunk is a task, or one for some of its heads; then the chunks are merged in order: the same bits.
  void run_chunks(const std::vector<int>& sequences, std::size_t enough) {
    std::vector<Few> tasks;
    std::vector<std::size_t> first_state;
    std::size_t states = 0;
    for (int split = 1;; split *= 2) {  // of the heads
      tasks.clear();
      first_state.clear();
      states = 0;
      for (const int sequence : sequences) {
        first_state.push_back(states);
        for (std::int64_t c = 0; c < plan_.chunks(sequence); ++c) {
          const int heads = (problem_.kv_heads + split - 1) / split;
          for (int h = 0; h < problem_.kv_heads; h += heads) {
            tasks.push_back({sequence, h, std::min(heads, problem_.kv_heads - h), c, 1, states});
            states += static_cast<std::size_t>(tasks.back().heads);
          }
        }
      }
      if (tasks.size() >= enough || split >= problem_.kv_heads) break;
    }
    std::vector<State> all(states, State(amx::group_rows * amx::padded(value_dim_)));
    parallel_for(static_cast<std::int64_t>(tasks.size()), plan_.threads(), [&](std::int64_t i, int worker) {
      const Few& task = tasks[static_cast<std::size_t>(i)];
      const simd::DotScope scope = few_scope(task.sequence);
      attend_few(task, task.first_chunk, all.data() + task.state, at(worker));
    });
    parallel_for(static_cast<std::int64_t>(sequences.size()), plan_.threads(),
                 [&](std::int64_t i, int worker) {
                   const int sequence = sequences[static_cast<std::size_t>(i)];
                   State total(amx::group_rows * amx::padded(value_dim_));
                   for (int h = 0; h < problem_.kv_heads; ++h) {
                     total.reset();
                     for (std::int64_t c = 0; c < plan_.chunks(sequence); ++c)
                       merge(all[first_state[static_cast<std::size_t>(i)] +
                                 static_cast<std::size_t>(c * problem_.kv_heads + h)],
                             total);
                     finish_few(sequence, h, total, at(worker));
                   }
                 });
  }

  void reserve_states(int count, Worker& worker) {
    while (static_cast<int>(worker.totals.size()) < count)
      worker.totals.emplace_back(strip_rows * amx::padded(value_dim_));
  }

  // The heads of one KV head, as the kernels for few rows see them.
  struct Head {
    KeyRows keys, values;
  };

  // One chunk under some KV heads, from the empty state: all heads of two slabs before the next slabs, since
  // their rows are neighbours in a page.
  void attend_few(const Few& few, std::int64_t chunk, State* states, Worker& worker) {
    const int sequence = few.sequence;
    worker.queries.resize(static_cast<std::size_t>(few.heads * amx::block_elements(dim_)));
    worker.keys.resize(static_cast<std::size_t>(2 * amx::block_elements(dim_)));
    worker.values.resize(static_cast<std::size_t>(2 * amx::block_elements(value_dim_)));
    std::vector<Head> heads;
    for (int h = 0; h < few.heads; ++h) {
      const int head = few.first_head + h;
      heads.push_back({{plan_, tensors_.k, tensors_.k_scale, sequence, head, false},
                       {plan_, tensors_.v, tensors_.v_scale, sequence, head, true}});
      load_queries(sequence, head, 0, worker.queries.data() + h * amx::block_elements(dim_), worker);
      states[h].reset();
    }
    const std::int64_t slabs = (plan_.keys(sequence) + slab_keys - 1) / slab_keys;
    const std::int64_t first = chunk * chunk_slabs, last = std::min(slabs, first + chunk_slabs);
    const bool by_head = problem_.mask.program().uses(Program::Op::h);
    if (!by_head) worker.visibility.compute(sequence, few.first_head, 0, first, last, worker.visible);
    const auto is_hidden = [&](std::int64_t slab) {
      return !by_head && slab < last && all_empty(worker.visible.slabs.data() + slab - first, last - slab);
    };
    const std::int64_t end = std::min(plan_.keys(sequence), (few.first_chunk + few.chunks) * chunk_keys);
    amx::Prefetch& prefetch = worker.prefetch;
    const auto add_ahead = [&](std::int64_t slab) {
      prefetch.clear();
      if (!is_hidden(slab)) add_rows(few, heads[0], slab * slab_keys, end, prefetch);
    };
    if (chunk == few.first_chunk) add_ahead(first), prefetch.ask_rest();
    for (std::int64_t slab = first; slab < last; slab += 2) {
      add_ahead(slab + 2);
      if (!is_hidden(slab)) {
        // A head's scores, packing, softmax and values have about so many steps.
        const std::int64_t steps = 4 * dim_ / 32 + 2 * slab_keys + value_dim_ / 16;
        prefetch.spread(few.heads * steps);
        const Two two = locate(heads[0], slab, std::min<std::int64_t>(2, last - slab));
        for (int h = 0; h < few.heads; ++h) {
          if (by_head)
            worker.visibility.compute(sequence, few.first_head + h, 0, slab, slab + two.slabs,
                                      worker.visible);
          const std::int32_t* seen = worker.visible.slabs.data() + (by_head ? 0 : slab - first);
          if (!all_empty(seen, two.slabs))
            attend_two(few, h, two, seen, heads[static_cast<std::size_t>(h)], states[h], worker);
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
  void add_rows(const Few& few, const Head& head, std::int64_t first, std::int64_t end,
                amx::Prefetch& prefetch) const {
    const std::int64_t count = std::min(2 * slab_keys, end - first);
    std::array<const std::byte*, 2 * slab_keys> rows;
    for (const KeyRows* of : {&head.keys, &head.values}) {
      of->addresses(first, count, rows.data());
      const bool together = of->head_bytes() == of->row_bytes();
      for (std::int64_t i = 0; i < count; ++i)
        for (int h = 0; h < few.heads; h += together ? few.heads : 1)
          prefetch.add(rows[static_cast<std::size_t>(i)] + h * of->head_bytes(),
                       of->row_bytes() * (together ? few.heads : 1));
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
  void attend_two(const Few& few, int h, const Two& two, const std::int32_t* seen, const Head& head,
                  State& state, Worker& worker) {
    std::array<const bfloat16*, 2 * slab_keys> rows;
    amx::Prefetch& prefetch = worker.prefetch;
    std::array<amx::KeyTile, 4> tiles;
    find_rows(head.keys, two, two.keys.data(), h, rows.data(), worker.gathered.data());
    locate_tiles(rows.data(), two, head.keys.is_direct(), tiles, worker);
    amx::scores_of_few(tiles.data(), (two.count + 15) / 16, queries_of(h, worker), dim_,
                       worker.scores[0].data(), prefetch);
    find_rows(head.values, two, two.values.data(), h, rows.data(), worker.gathered.data());
    std::array<bool, 2> finite{};
    for (std::int64_t s = 0; s < two.slabs; ++s)
      finite[static_cast<std::size_t>(s)] = amx::pack_value_pairs(
          rows.data() + s * slab_keys, std::min(slab_keys, two.count - s * slab_keys), value_dim_,
          worker.values.data() + s * amx::block_elements(value_dim_), seen[s] != Visibility::full, prefetch);
    Waiting waiting;
    waiting.started = true;  // states start as zeros
    for (std::int64_t s = 0; s < two.slabs; ++s) {
      if (seen[s] == Visibility::empty) continue;
      float* scores = worker.scores[0].data() + s * slab_keys * amx::group_rows;
      const std::uint32_t* words =
          seen[s] == Visibility::full ? nullptr : worker.visible.words.data() + seen[s];
      worker.programs.apply(
          {few.sequence, few.first_head + h, 0, plan_.sequence_rows(few.sequence), two.slab + s}, scores,
          nullptr);
      if (words != nullptr) amx::hide_from_few(words, scores);
      alignas(64) float scales[amx::group_rows];
      if (amx::raise_few(scores, plan_.log2_factor(), raise_above_, state.lanes, scales)) {
        add_values_of_few(waiting, state, worker);
        if (!is_mutant(plan_.mutant(), Mutant::skip_rescale))
          amx::rescale_few(scales, value_dim_, state.out.data());
      }
      bfloat16* p = worker.p.data() + waiting.count * amx::tile_elements;
      amx::softmax_of_few(scores, plan_.log2_factor(), state.lanes, p, prefetch);
      const bfloat16* values = worker.values.data() + s * amx::block_elements(value_dim_);
      if (words != nullptr && !finite[static_cast<std::size_t>(s)]) {
        const AlignedVector<bfloat16> slab_p(p, p + amx::tile_elements);
        add_values_of_few(waiting, state, worker);
        amx::add_visible_values_to_few(words, values, slab_p.data(), value_dim_, state.out.data());
      } else {
        waiting.values[static_cast<std::size_t>(waiting.count++)] = values;
      }
    }
    add_values_of_few(waiting, state, worker);
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

  void add_values_of_few(Waiting& waiting, State& state, Worker& worker) {
    if (waiting.count > 0)
      amx::add_values_to_few(waiting.values.data(), waiting.count, worker.p.data(), value_dim_,
                             state.out.data(), worker.prefetch);
    waiting.count = 0;
  }

  void merge(const State& later, State& total) {
    amx::merge_few(later.lanes, later.out.data(), plan_.log2_factor(), value_dim_, total.lanes,
                   total.out.data());
  }

  void finish_few(int sequence, int kv_head, const State& total, Worker& worker) {
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

  const TiledPlan& plan_;
  const Problem& problem_;
  const ForwardTensors& tensors_;
  std::int64_t dim_, value_dim_;
  float raise_above_;
  std::vector<std::optional<Worker>> workers_;
};

}  // namespace

void amx_forward(const TiledPlan& plan, const ForwardTensors& tensors) { AmxForward(plan, tensors).run(); }

}  // namespace chorale::tiled
