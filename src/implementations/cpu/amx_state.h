// What the AMX schedules for many and for few rows share (amx_many.cpp, amx_few.cpp).
#pragma once

#include <algorithm>
#include <array>

#include "base/aligned.h"
#include "implementations/cpu/amx_kernels.h"
#include "implementations/cpu/query_rows.h"

namespace chorale::tiled::amx {

inline constexpr std::int64_t chunk_slabs = chunk_keys / slab_keys;

struct Pass {
  Pass(const TiledPlan& plan, const ForwardTensors& tensors)
      : plan_(plan),
        problem_(plan.problem()),
        tensors_(tensors),
        dim_(problem_.head_dim),
        value_dim_(problem_.value_dim()),
        most_sum_(is_mutant(plan.mutant(), Mutant::skip_rescale) ? 0 : most_sum) {}

  const TiledPlan& plan_;
  const Problem& problem_;
  const ForwardTensors& tensors_;
  std::int64_t dim_, value_dim_;
  float most_sum_;
};

// A strip's rows over some keys.
struct State {
  explicit State(std::int64_t out_elements) : out(static_cast<std::size_t>(out_elements)) { clear(lanes); }
  void reset() {
    clear(lanes);
    std::fill(out.begin(), out.end(), 0.0f);
  }
  Lanes lanes;
  bool empty = true;  // many rows: nothing was added, and out holds anything
  AlignedVector<float> out;
};

// Probabilities of slabs that wait to be multiplied with their values, so that the accumulators are loaded
// and stored seldom. What waits changes no bit.
struct Waiting {
  std::array<const bfloat16*, chunk_slabs> values;
  std::int64_t count = 0;
  bool started = false;  // many rows: out holds something. Few rows start with zeros
};

// The probabilities of the slab that waits next, in `p`, where those of each slab are `elements`. When
// references are raised is part of the order, and the same for many rows and few: those of `fresh` rows,
// which have none, before, and those of rows whose sum is above `most` after, and then the slab is done
// again. raise(rows) raises them; softmax(p, most, again) returns the rows above, and leaves lanes alone
// where there are some.
template <class Raise, class Softmax>
bfloat16* make_probabilities(Rows fresh, float most, const Waiting& waiting, bfloat16* p,
                             std::int64_t elements, Raise raise, Softmax softmax) {
  const auto place = [&] { return p + waiting.count * elements; };  // raise() may leave nothing that waits
  if (fresh != 0) raise(fresh);
  const Rows above = softmax(place(), most, false);
  if (above == 0) return place();
  raise(above);
  softmax(place(), no_bound, true);
  return place();
}

// A strip of queries, packed. `gathered`: room for its rows.
inline void load_queries(const TiledPlan& plan, const TensorView& q, int sequence, int kv_head,
                         std::int64_t strip, bfloat16* out, bfloat16* gathered) {
  std::array<const bfloat16*, strip_rows> rows;
  const std::int64_t count =
      locate_rows(plan, q, sequence, kv_head, strip * strip_rows, strip_rows, rows.data(), gathered);
  pack_queries(rows.data(), count, plan.problem().head_dim, out);
}

}  // namespace chorale::tiled::amx
