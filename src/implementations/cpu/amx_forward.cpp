// Two schedules, one order of arithmetic:
//
//     many rows    for each group of strips of a sequence and KV head, on any thread
//                    for each chunk of 1024 keys
//                      for each strip of 32 rows
//                        for each slab of 32 keys that the strip sees
//                          pack the slab, once a group
//                          exponentials of this slab, while the tile unit computes the scores of the next
//                        probabilities times values, once for all slabs of the chunk
//                        merge the chunk into the strip's total
//     few rows     for each sequence (or each of its chunks, where there are few), on any thread
//     (a decode)     for each chunk, for each two slabs, for each KV head
//                      keys straight from their pages, values paired on the way, while the memory is asked
//                      for the next head's
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
    std::array<std::int8_t, chunk_slabs> packed;  // 0: not yet, 1: finite values, 2: not
    State chunk;
    std::vector<State> totals;
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
    for (auto strip = static_cast<std::int64_t>(worker.totals.size()); strip < group.strips; ++strip)
      worker.totals.emplace_back(strip_rows * amx::padded(value_dim_));
    for (std::int64_t i = 0; i < group.strips; ++i) {
      worker.totals[static_cast<std::size_t>(i)].reset();
      load_queries(group.sequence, group.kv_head, group.first + i,
                   worker.queries.data() + i * amx::block_elements(dim_), worker);
    }
    for (std::int64_t chunk = 0; chunk < plan_.chunks(group.sequence); ++chunk) {
      worker.packed.fill(0);
      for (std::int64_t i = 0; i < group.strips; ++i) attend_strip(group, i, chunk, worker);
    }
    for (std::int64_t i = 0; i < group.strips; ++i) {
      State& total = worker.totals[static_cast<std::size_t>(i)];
      amx::unpack(total.out.data(), value_dim_, worker.rows.data());
      finish(group.sequence, group.kv_head, (group.first + i) * strip_rows, strip_rows, total.lanes, worker);
    }
  }

  void load_queries(int sequence, int kv_head, std::int64_t strip, bfloat16* out, Worker& worker) {
    std::array<const bfloat16*, strip_rows> rows;
    const std::int64_t count = locate_rows(plan_, tensors_.q, sequence, kv_head, strip * strip_rows,
                                           strip_rows, rows.data(), worker.gathered.data());
    amx::pack_queries(rows.data(), count, dim_, out);
  }

  // A slab of the chunk, packed at first use.
  void pack(const Group& group, std::int64_t slab, Worker& worker) {
    auto& packed = worker.packed[static_cast<std::size_t>(slab % chunk_slabs)];
    if (packed != 0) return;
    const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, group.sequence, group.kv_head, false);
    const KeyRows values(plan_, tensors_.v, tensors_.v_scale, group.sequence, group.kv_head, true);
    const std::int64_t first = slab * slab_keys,
                       count = std::min(slab_keys, plan_.keys(group.sequence) - first);
    std::array<const bfloat16*, slab_keys> rows;
    keys.locate(first, count, rows.data(), worker.gathered.data());
    amx::pack_keys(rows.data(), count, dim_, keys_of(slab, worker));
    values.locate(first, count, rows.data(), worker.gathered.data());
    packed = amx::pack_values(rows.data(), count, value_dim_, values_of(slab, worker)) ? 1 : 2;
  }
  bfloat16* keys_of(std::int64_t slab, Worker& worker) const {
    return worker.keys.data() + slab % chunk_slabs * amx::block_elements(dim_);
  }
  bfloat16* values_of(std::int64_t slab, Worker& worker) const {
    return worker.values.data() + slab % chunk_slabs * amx::block_elements(value_dim_);
  }

  void attend_strip(const Group& group, std::int64_t index, std::int64_t chunk, Worker& worker) {
    const Visibility::Strip& visible =
        plan_.visibility().strip(group.sequence, group.kv_head, group.first + index);
    std::array<std::int64_t, chunk_slabs> slabs;
    std::int64_t count = 0;
    const std::int64_t end =
        std::min(static_cast<std::int64_t>(visible.slabs.size()), (chunk + 1) * chunk_slabs);
    for (std::int64_t slab = chunk * chunk_slabs; slab < end; ++slab)
      if (visible.slabs[static_cast<std::size_t>(slab)] != Visibility::empty)
        slabs[static_cast<std::size_t>(count++)] = slab;
    if (count == 0) return;
    for (std::int64_t i = 0; i < count; ++i) pack(group, slabs[static_cast<std::size_t>(i)], worker);

    State& total = worker.totals[static_cast<std::size_t>(index)];
    amx::clear(worker.chunk.lanes);
    const bfloat16* queries = worker.queries.data() + index * amx::block_elements(dim_);
    const std::int64_t first_row = (group.first + index) * strip_rows;
    const std::int64_t rows = std::min(strip_rows, plan_.sequence_rows(group.sequence) - first_row);
    Waiting waiting;
    amx::scores(keys_of(slabs[0], worker), queries, dim_, worker.scores[0].data());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t slab = slabs[static_cast<std::size_t>(i)];
      const std::int32_t seen = visible.slabs[static_cast<std::size_t>(slab)];
      const std::uint32_t* words = seen == Visibility::full ? nullptr : visible.words.data() + seen;
      float* scores = worker.scores[i % 2].data();
      worker.programs.apply({group.sequence, group.kv_head, first_row, rows, slab}, scores, nullptr);
      if (words != nullptr) amx::hide(words, scores);
      raise(scores, worker.chunk, waiting, worker);
      bfloat16* p = worker.p.data() + waiting.count * slab_keys * strip_rows;
      amx::softmax(scores, plan_.log2_factor(), worker.chunk.lanes, p,
                   i + 1 < count ? keys_of(slabs[static_cast<std::size_t>(i + 1)], worker) : nullptr, queries,
                   dim_, worker.scores[(i + 1) % 2].data());
      if (words != nullptr && worker.packed[static_cast<std::size_t>(slab % chunk_slabs)] == 2) {
        add_visible_values(words, values_of(slab, worker), p, waiting, worker);
      } else {
        waiting.values[static_cast<std::size_t>(waiting.count++)] = values_of(slab, worker);
      }
    }
    add_values(waiting, worker);
    amx::merge(worker.chunk.lanes, worker.chunk.out.data(), plan_.log2_factor(), value_dim_, total.lanes,
               total.out.data());
  }

  void raise(const float* scores, State& state, Waiting& waiting, Worker& worker) {
    alignas(64) float scales[strip_rows];
    if (!amx::raise(scores, plan_.log2_factor(), raise_above_, state.lanes, scales)) return;
    add_values(waiting, worker);
    if (!is_mutant(plan_.mutant(), Mutant::skip_rescale)) amx::rescale(scales, value_dim_, state.out.data());
  }

  void add_values(Waiting& waiting, Worker& worker) {
    if (waiting.count == 0) return;
    amx::add_values(waiting.values.data(), waiting.count, worker.p.data(), value_dim_,
                    worker.chunk.out.data(), waiting.started);
    waiting.started = true;
    waiting.count = 0;
  }

  // The slab whose probabilities come next in worker.p must not be multiplied with the others.
  void add_visible_values(const std::uint32_t* words, const bfloat16* values, const bfloat16* p,
                          Waiting& waiting, Worker& worker) {
    const AlignedVector<bfloat16> slab_p(p, p + slab_keys * strip_rows);
    add_values(waiting, worker);
    if (!waiting.started) std::fill(worker.chunk.out.begin(), worker.chunk.out.end(), 0.0f);
    waiting.started = true;
    amx::add_visible_values(words, values, slab_p.data(), value_dim_, worker.chunk.out.data());
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
                     const simd::DotScope scope(simd::DotLevel::amx);
                     const int sequence = sequences[static_cast<std::size_t>(i)];
                     run_sequence({sequence, 0, problem_.kv_heads, 0, plan_.chunks(sequence)}, at(worker));
                   });
      return;
    }
    run_chunks(sequences, enough);
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
      const simd::DotScope scope(simd::DotLevel::amx);
      const Few& task = tasks[static_cast<std::size_t>(i)];
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
    for (std::int64_t slab = first; slab < last; slab += 2)
      for (int h = 0; h < few.heads; ++h) {
        std::int64_t offset = slab - first;
        if (by_head) {
          worker.visibility.compute(sequence, few.first_head + h, 0, slab, std::min(slab + 2, last),
                                    worker.visible);
          offset = 0;
        }
        const bool last_head = h + 1 == few.heads;
        const Head* next =
            last_head && slab + 2 >= last ? nullptr : &heads[static_cast<std::size_t>(last_head ? 0 : h + 1)];
        attend_two(few, h, slab, std::min<std::int64_t>(2, last - slab), offset,
                   heads[static_cast<std::size_t>(h)], next, last_head ? slab + 2 : slab, states[h], worker);
      }
  }

  // One or two slabs under one KV head.
  void attend_two(const Few& few, int h, std::int64_t slab, std::int64_t slabs, std::int64_t offset,
                  const Head& head, const Head* next, std::int64_t next_slab, State& state, Worker& worker) {
    const std::int32_t* seen = worker.visible.slabs.data() + offset;
    if (std::all_of(seen, seen + slabs, [](std::int32_t s) { return s == Visibility::empty; })) return;
    const std::int64_t first = slab * slab_keys,
                       count = std::min(slabs * slab_keys, plan_.keys(few.sequence) - first);
    std::array<const bfloat16*, 2 * slab_keys> rows;
    std::array<const std::byte*, 4 * slab_keys> ahead;
    amx::Prefetch prefetch;
    if (next != nullptr) {
      const std::int64_t next_first = next_slab * slab_keys;
      prefetch.count = std::min(2 * slab_keys, plan_.keys(few.sequence) - next_first);
      next->keys.addresses(next_first, prefetch.count, ahead.data());
      next->values.addresses(next_first, prefetch.count, ahead.data() + 2 * slab_keys);
      prefetch.keys = ahead.data();
      prefetch.values = ahead.data() + 2 * slab_keys;
      prefetch.key_bytes = next->keys.row_bytes();
      prefetch.value_bytes = next->values.row_bytes();
    }
    std::array<amx::KeyTile, 4> tiles;
    head.keys.rows(first, count, rows.data(), worker.gathered.data());
    locate_tiles(rows.data(), count, tiles, worker);
    const bfloat16* queries = worker.queries.data() + h * amx::block_elements(dim_);
    amx::scores_of_few(tiles.data(), (count + 15) / 16, queries, dim_, worker.scores[0].data());
    head.values.rows(first, count, rows.data(), worker.gathered.data());
    std::array<bool, 2> finite{};
    for (std::int64_t s = 0; s < slabs; ++s)
      finite[static_cast<std::size_t>(s)] = amx::pack_value_pairs(
          rows.data() + s * slab_keys, std::min(slab_keys, count - s * slab_keys), value_dim_,
          worker.values.data() + s * amx::block_elements(value_dim_), prefetch.part(s * slab_keys));
    Waiting waiting;
    waiting.started = true;  // states start as zeros
    for (std::int64_t s = 0; s < slabs; ++s) {
      if (seen[s] == Visibility::empty) continue;
      float* scores = worker.scores[0].data() + s * slab_keys * amx::group_rows;
      const std::uint32_t* words =
          seen[s] == Visibility::full ? nullptr : worker.visible.words.data() + seen[s];
      worker.programs.apply(
          {few.sequence, few.first_head + h, 0, plan_.sequence_rows(few.sequence), slab + s}, scores,
          nullptr);
      if (words != nullptr) amx::hide_from_few(words, scores);
      alignas(64) float scales[amx::group_rows];
      if (amx::raise_few(scores, plan_.log2_factor(), raise_above_, state.lanes, scales)) {
        add_values_of_few(waiting, state, worker);
        if (!is_mutant(plan_.mutant(), Mutant::skip_rescale))
          amx::rescale_few(scales, value_dim_, state.out.data());
      }
      bfloat16* p = worker.p.data() + waiting.count * amx::tile_elements;
      amx::softmax_of_few(scores, plan_.log2_factor(), state.lanes, p, prefetch.part(s * slab_keys));
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
  void locate_tiles(const bfloat16* const* rows, std::int64_t count, std::array<amx::KeyTile, 4>& tiles,
                    Worker& worker) const {
    for (std::int64_t t = 0; t * 16 < count; ++t) {
      const bfloat16* const* tile = rows + t * 16;
      const std::int64_t here = std::min<std::int64_t>(16, count - t * 16);
      const std::int64_t stride = here > 1 ? tile[1] - tile[0] : 0;
      bool regular = here == 16 && dim_ % 32 == 0;
      for (std::int64_t i = 2; i < here; ++i) regular = regular && tile[i] - tile[i - 1] == stride;
      if (regular) {
        tiles[static_cast<std::size_t>(t)] = {tile[0], stride, 32};
        continue;
      }
      bfloat16* packed = worker.keys.data() + t * 16 * amx::padded(dim_);
      amx::pack_key_tile(tile, here, dim_, packed);
      tiles[static_cast<std::size_t>(t)] = {packed, 32, amx::tile_elements};
    }
  }

  void add_values_of_few(Waiting& waiting, State& state, Worker& worker) {
    if (waiting.count > 0)
      amx::add_values_to_few(waiting.values.data(), waiting.count, worker.p.data(), value_dim_,
                             state.out.data());
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
    finish(sequence, kv_head, 0, amx::group_rows, total.lanes, worker);
  }

  // ---- both

  // One rounding: out and lse of rows [first, first + most) that the sequence has; worker.rows holds their
  // sums.
  void finish(int sequence, int kv_head, std::int64_t first, std::int64_t most, const amx::Lanes& lanes,
              Worker& worker) {
    const std::int64_t rows = std::min(most, plan_.sequence_rows(sequence) - first);
    for (std::int64_t r = 0; r < rows; ++r) {
      const RowState state{lanes.reference[r], lanes.sum[r],
                           worker.rows.data() + r * amx::padded(value_dim_)};
      finish_row(plan_, tensors_, plan_.query_of_row(sequence, first + r),
                 plan_.head_of_row(kv_head, first + r), state);
    }
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
