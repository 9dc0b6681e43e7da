// What the parts of attention on AMX cost (src/implementations/cpu/amx_kernels.h), each alone, at
// head_dim 128: what docs/cpu_attention.md adds up.
//     amx_parts [PROCESSOR]     pinned to that one; 2 if nothing is said
#include <algorithm>
#include <array>
#include <memory>
#include <random>
#include <vector>

#include "base/aligned.h"
#include "base/float.h"
#include "bench/amx_rounds.h"
#include "implementations/cpu/amx_kernels.h"

namespace chorale::bench {
namespace {

namespace amx = tiled::amx;

constexpr std::int64_t dim = 128, block = amx::block_elements(dim);
constexpr std::int64_t slabs = 32, strips = 32;  // of a chunk; of a group that stays in the second level
constexpr float factor = 0.1275f;

AlignedVector<bfloat16> numbers(std::int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> draw;
  AlignedVector<bfloat16> out(static_cast<std::size_t>(count));
  for (bfloat16& x : out) x = from_float<bfloat16>(draw(random));
  return out;
}

// Rows of 16 heads, 4096 positions: what is not in a cache.
struct Rows {
  static constexpr std::int64_t positions = 4096, stride = 16 * dim;
  AlignedVector<bfloat16> memory = numbers(positions * stride);
  std::int64_t at = 0;
  std::array<bfloat16*, 32> next() {  // 32 rows of one head, other ones each time
    std::array<bfloat16*, 32> rows;
    at = (at + 32) % positions;
    for (std::int64_t i = 0; i < 32; ++i)
      rows[static_cast<std::size_t>(i)] = memory.data() + (at + i) * stride;
    return rows;
  }
};

// What a thread has.
struct Worker {
  AlignedVector<bfloat16> keys = numbers(slabs * block), values = numbers(slabs * block),
                          queries = numbers(strips * block),
                          p = numbers(slabs * amx::slab_keys * amx::strip_rows);
  AlignedVector<float> scores = AlignedVector<float>(2 * amx::score_elements),
                       out = AlignedVector<float>(strips * amx::strip_rows * dim),
                       chunk = AlignedVector<float>(amx::strip_rows * dim);
  std::array<const bfloat16*, slabs> value_slabs;
  amx::Lanes lanes;
  Rows rows;
  std::int64_t strip = 0;

  Worker() {
    for (std::int64_t s = 0; s < slabs; ++s)
      value_slabs[static_cast<std::size_t>(s)] = values.data() + s * block;
    amx::clear(lanes);
    std::fill(std::begin(lanes.reference), std::end(lanes.reference), 25.0f);
  }
  float* scores_of(std::int64_t slab) { return scores.data() + slab % 2 * amx::score_elements; }
  float* out_of_next_strip() {
    strip = (strip + 1) % strips;
    return out.data() + strip * amx::strip_rows * dim;
  }
  void exponentials(std::int64_t slab, const bfloat16* next_keys) {
    amx::softmax(scores_of(slab), factor, amx::most_sum, lanes,
                 p.data() + slab * amx::slab_keys * amx::strip_rows, next_keys,
                 queries.data() + strip * block, dim, scores_of(slab + 1));
  }
  void add_values(float* to) { amx::add_values(value_slabs.data(), slabs, p.data(), dim, to, false); }
};

// A decode's: 64 keys of 8 KV heads, four rows of each.
struct Few {
  static constexpr std::int64_t heads = 8, keys = 64, rows = 4;
  AlignedVector<bfloat16> k = numbers(keys * heads * dim), v = k, queries = numbers(heads * block),
                          values = numbers(2 * block), p = numbers(2 * amx::tile_elements);
  AlignedVector<float> scores = AlignedVector<float>(2 * amx::score_elements),
                       out = AlignedVector<float>(heads * amx::group_rows * dim);
  amx::Lanes lanes;
  amx::Prefetch nothing;

  Few() {
    amx::clear(lanes);
    std::fill(std::begin(lanes.reference), std::end(lanes.reference), 25.0f);
  }
  void multiply_keys(std::int64_t head) {
    std::array<amx::KeyTile, keys / 16> tiles;
    for (std::size_t t = 0; t < tiles.size(); ++t)
      tiles[t] = {k.data() + (static_cast<std::int64_t>(t) * 16 * heads + head) * dim, heads * dim, 32};
    amx::scores_of_few(tiles.data(), keys / 16, queries.data() + head * block, dim, scores.data(), nothing);
  }
  void pair_values(std::int64_t head) {
    std::array<const bfloat16*, keys> of;
    for (std::int64_t i = 0; i < keys; ++i)
      of[static_cast<std::size_t>(i)] = v.data() + (i * heads + head) * dim;
    for (std::int64_t s = 0; s < 2; ++s)
      amx::pack_value_pairs(of.data() + s * amx::slab_keys, amx::slab_keys, dim, values.data() + s * block,
                            false, nothing);
  }
  void exponentials() {
    for (std::int64_t s = 0; s < 2; ++s)
      amx::softmax_of_few(scores.data() + s * amx::slab_keys * amx::group_rows, factor, amx::most_sum, lanes,
                          p.data() + s * amx::tile_elements, nothing);
  }
  void add_values(std::int64_t head) {
    const std::array<const bfloat16*, 2> two{values.data(), values.data() + block};
    amx::add_values_to_few(two.data(), 2, p.data(), dim, out.data() + head * amx::group_rows * dim, nothing);
  }
};

std::vector<AmxPiece> pieces() {
  std::vector<AmxPiece> list;
  const auto w = std::make_shared<Worker>();
  const auto each_slab = [&](const char* name, auto run) {
    list.push_back({name, slabs, [=] {
                      for (std::int64_t s = 0; s < slabs; ++s) run(s);
                    }});
  };
  const auto once = [&](const char* name, double units, auto run) { list.push_back({name, units, run}); };
  const auto keys = [=](std::int64_t s) { return w->keys.data() + s * block; };
  each_slab("a slab: scores", [=](auto s) { amx::scores(keys(s), w->queries.data(), dim, w->scores_of(s)); });
  each_slab("exponentials", [=](auto s) { w->exponentials(s, nullptr); });
  each_slab("exponentials and the next scores", [=](auto s) { w->exponentials(s, keys(s)); });
  once("values", slabs, [=] { w->add_values(w->out_of_next_strip()); });
  once("all of a strip's chunk", slabs, [=] {
    float* out = w->out_of_next_strip();
    for (std::int64_t s = 0; s < slabs; ++s) w->exponentials(s, keys(s));
    w->add_values(out);
  });
  once("a strip: merge", 1, [=] {
    amx::Lanes total = w->lanes;
    amx::merge(w->lanes, w->chunk.data(), factor, dim, total, w->out_of_next_strip());
  });
  const auto divisors = std::make_shared<std::array<float, amx::strip_rows>>();
  divisors->fill(3);
  for (const bool past_caches : {false, true})
    once(past_caches ? "quotients, past the caches" : "quotients, to rows that are not cached", 1, [=] {
      amx::store_quotients(w->out_of_next_strip(), divisors->data(), amx::strip_rows, dim, past_caches,
                           w->rows.next().data());
    });
  once("queries packed, rows not cached", 1,
       [=] { amx::pack_queries(w->rows.next().data(), amx::strip_rows, dim, w->queries.data()); });
  once("a slab: keys packed, rows not cached", 1,
       [=] { amx::pack_keys(w->rows.next().data(), amx::slab_keys, dim, w->keys.data()); });
  once("values packed, rows not cached", 1,
       [=] { amx::pack_values(w->rows.next().data(), amx::slab_keys, dim, w->values.data()); });

  const auto f = std::make_shared<Few>();
  const auto few = [&](const char* name, auto run) {
    list.push_back({name, Few::heads,
                    [=] {
                      for (std::int64_t h = 0; h < Few::heads; ++h) run(h);
                    },
                    Few::rows});
  };
  few("a decode's 64 keys of a head: scores", [=](auto h) { f->multiply_keys(h); });
  few("values paired", [=](auto h) { f->pair_values(h); });
  few("exponentials", [=](auto) { f->exponentials(); });
  few("values", [=](auto h) { f->add_values(h); });
  few("all", [=](auto h) {
    f->multiply_keys(h);
    f->pair_values(h);
    f->exponentials();
    f->add_values(h);
  });
  return list;
}

}  // namespace
}  // namespace chorale::bench

int main(int argc, char** argv) {
  return chorale::bench::measure_amx_pieces("amx_parts", "what the parts of attention on AMX cost", argc,
                                            argv, chorale::bench::pieces);
}
