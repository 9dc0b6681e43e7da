// What becomes of chunks' states. Those of an item are merged by its block of threads. The item's is the
// output where it is the row block's only one, else a partial state in memory, which the last of the row
// block's items to be done merges with the others, in order.
#pragma once

#include "decode_scores.cuh"
#include "decode_values.cuh"

namespace chorale::kernels {

// Where a row of the row block goes.
struct OutputRow {
  bool real;
  int token, head;
  __device__ OutputRow(const SplitItem& item, int kv_head, int row)
      : real(row < Config::rows && row / Config::group < item.positions),
        token(item.q_row + row / Config::group),
        head(kv_head * Config::group + row % Config::group) {}
  __device__ u16* data(const Rows& out) const {
    return static_cast<u16*>(out.data) + token * out.token_stride + head * out.head_stride;
  }
};

__device__ __forceinline__ RowEnd end_row(const ForwardParams& params, const OutputRow& row, float reference,
                                          float sum) {
  const float sink = Config::sinks && row.real ? params.sinks[row.head] : -infinity;
  return row_end(reference, sum, params.factor, sink);
}
__device__ __forceinline__ void store_lse(const ForwardParams& params, const OutputRow& row, float lse) {
  if (params.lse != nullptr)
    params.lse[static_cast<long long>(row.token) * (params.kv_heads * Config::group) + row.head] = lse;
}

// The partial states of a row block under a KV head.
struct Partials {
  float *out, *reference, *sum;  // [states, rows, value_dim], [states, rows]
  __device__ Partials(const ForwardParams& params, const SplitItem& item, int kv_head) {
    const long long first = (static_cast<long long>(kv_head) * params.slots + item.first_slot) * Config::rows;
    out = params.partial_out + first * Config::value_dim;
    reference = params.partial_reference + first;
    sum = params.partial_sum + first;
  }
};

// The state of an item's chunks that have ended: reference and sum of the row that the thread keeps, and the
// thread's outputs.
struct Total {
  float kept_reference, kept_sum;
  Outputs out;
  __device__ __forceinline__ void reset() {
    kept_reference = -infinity;
    kept_sum = 0.f;
    clear(out);
  }
};

// A chunk has ended: references and sums of rows, by the threads that keep them, and what others need of
// them.
__device__ __forceinline__ void merge_kept(const ForwardParams& params, DecodeShared& shared,
                                           const Pass& pass, const Running& chunk, Total& total, int warp,
                                           int rank) {
  const SplitItem& item = shared.items[pass.item];
  const int row = kept_row(warp);
  float sum = chunk.kept_sum;
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
  const MergeWeights weights = merge_weights(total.kept_reference, chunk.kept_reference, params.factor);
  total.kept_reference = weights.maximum;
  total.kept_sum = merge(total.kept_sum, sum, weights);
  if (threadIdx.x % 4 != 0 || row >= Config::rows) return;
  shared.row_weights[row] = {weights.total, weights.chunk};
  if (!pass.ends_item) return;
  if (item.states <= 1) {
    const OutputRow to(item, pass.kv_head, row);
    const RowEnd end = end_row(params, to, total.kept_reference, total.kept_sum);
    shared.row_end[row] = end.factor;
    if (to.real && rank == 0) store_lse(params, to, end.lse);
  } else if (rank == 0) {
    const Partials partials(params, item, pass.kv_head);
    partials.reference[item.state * Config::rows + row] = total.kept_reference;
    partials.sum[item.state * Config::rows + row] = total.kept_sum;
  }
}

// What f(output, row, column) does to each of a thread's outputs in rows that are in use.
template <class F>
__device__ __forceinline__ void for_each_output(Outputs& out, int warp, int rank, F&& f) {
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = 8 * n + threadIdx.x % 4 * 2 + e;
      if (row >= Config::rows) continue;
#pragma unroll
      for (int i = 0; i < warp_value_blocks; ++i) {
        const ValueBlock block(warp, i, rank);
        if (!block.is_real) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(out[i][n][2 * half + e], row, 16 * block.of_all + column_of(half));
      }
    }
}

__device__ __forceinline__ void merge_outputs(Outputs& total, const Outputs& chunk,
                                              const DecodeShared& shared) {
#pragma unroll
  for (int n = 0; n < row_groups; ++n) {
    const float4 w = *reinterpret_cast<const float4*>(&shared.row_weights[8 * n + threadIdx.x % 4 * 2]);
#pragma unroll
    for (int i = 0; i < warp_value_blocks; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        total[i][n][2 * half] =
            merge(total[i][n][2 * half], chunk[i][n][2 * half], MergeWeights{0.f, w.x, w.y});
        total[i][n][2 * half + 1] =
            merge(total[i][n][2 * half + 1], chunk[i][n][2 * half + 1], MergeWeights{0.f, w.z, w.w});
      }
  }
}

__device__ __forceinline__ void store_output(const ForwardParams& params, const DecodeShared& shared,
                                             const Pass& pass, Outputs& out, int warp, int rank) {
  const SplitItem& item = shared.items[pass.item];
  for_each_output(out, warp, rank, [&](float x, int row, int column) {
    const OutputRow to(item, pass.kv_head, row);
    if (to.real) to.data(params.out)[column] = static_cast<u16>(pack(finished(x, shared.row_end[row]), 0.f));
  });
}

__device__ __forceinline__ void store_partial(const ForwardParams& params, const DecodeShared& shared,
                                              const Pass& pass, Outputs& out, int warp, int rank) {
  const SplitItem& item = shared.items[pass.item];
  float* to = Partials(params, item, pass.kv_head).out +
              static_cast<long long>(item.state) * Config::rows * Config::value_dim;
  for_each_output(out, warp, rank,
                  [&](float x, int row, int column) { to[row * Config::value_dim + column] = x; });
}

// Step i of a row block's merges takes the states of slots 31 i to 31 i + 31: the first is the total so far,
// or state 0, and the last becomes the total. Steps follow one another in order; each is done by whoever is
// the last to bring one of its states, while other blocks of threads are still busy with later chunks.
struct StepRange {
  int first, count;
  int arrivals;  // of a state each block of a cluster has a part, but one block brings the total so far
  bool last;
  __device__ StepRange(int step, int states)
      : first(step * merge_step),
        count(min(MergeStep::states, states - first)),
        arrivals(step == 0 ? count * cluster : 1 + (count - 1) * cluster),
        last(first + count == states) {}
};

// Whether all other states of the step are there, and visible.
__device__ __forceinline__ bool arrive_last(const ForwardParams& params, DecodeShared& shared,
                                            const SplitItem& item, int kv_head, int step) {
  sync_consumers();
  if (threadIdx.x == 0) {
    const u32 last = StepRange(step, item.states).arrivals - 1;
    u32* arrivals = reinterpret_cast<u32*>(params.arrivals) + kv_head * params.arrival_counters +
                    item.first_counter + step;
    shared.is_last_arrival = count_arrival(arrivals, last) == last;
  }
  sync_consumers();
  return shared.is_last_arrival;
}

// Weights of a step's states for one row, by a warp: lane i has state i. Returns that of all.
__device__ __forceinline__ float weigh(MergeStep& step, const Partials& partials, int row, StepRange range,
                                       float factor) {
  const int lane = threadIdx.x % 32;
  const long long at = static_cast<long long>(range.first + lane) * Config::rows + row;
  const bool real = lane < range.count;
  const float own = real ? __ldcg(partials.reference + at) : -infinity;
  const float sum = real ? __ldcg(partials.sum + at) : 0.f;
  float through = own;  // the reference of this state merged with those before it
  for (int distance = 1; distance < 32; distance *= 2) {
    const float earlier = __shfl_up_sync(~0u, through, distance);
    if (lane >= distance) through = fmaxf(through, earlier);
  }
  const MergeWeights weights = merge_weights(__shfl_up_sync(~0u, through, 1), own, factor);
  if (real) *reinterpret_cast<float4*>(step.weights[row][lane]) = {weights.total, weights.chunk, sum, 0.f};
  return __shfl_sync(~0u, through, 31);
}

// Two columns of a row that a thread merges, with the row's sum.
struct MergedPair {
  float2 out;
  float sum;

  __device__ __forceinline__ MergedPair(const float2 (&values)[MergeStep::states], const MergeStep& step,
                                        int row, int count)
      : out(values[0]), sum(step.weights[row][0][2]) {
#pragma unroll
    for (int i = 1; i < MergeStep::states; ++i) {
      if (i >= count) break;
      const float4 w = *reinterpret_cast<const float4*>(step.weights[row][i]);
      const MergeWeights weights = {0.f, w.x, w.y};
      out.x = merge(out.x, values[i].x, weights);
      out.y = merge(out.y, values[i].y, weights);
      sum = merge(sum, w.z, weights);
    }
  }
};

__device__ __forceinline__ void store_merged(const ForwardParams& params, const SplitItem& item, int kv_head,
                                             const MergedPair& merged, float reference, int row, int column) {
  const OutputRow to(item, kv_head, row);
  if (!to.real) return;
  const RowEnd end = end_row(params, to, reference, merged.sum);
  if (column == 0) store_lse(params, to, end.lse);
  *reinterpret_cast<u32*>(to.data(params.out) + column) =
      pack(finished(merged.out.x, end.factor), finished(merged.out.y, end.factor));
}

// One step, in ascending order; the threads share the pairs of columns.
__device__ __forceinline__ void merge_states(const ForwardParams& params, DecodeShared& shared,
                                             const SplitItem& item, int kv_head, int step) {
  constexpr int row_pairs = Config::value_dim / 2, pairs = Config::rows * row_pairs;
  const Partials partials(params, item, kv_head);
  const StepRange range(step, item.states);
  const int warp = threadIdx.x / 32;
  float2* states = reinterpret_cast<float2*>(partials.out) + static_cast<long long>(range.first) * pairs;
  const long long total = static_cast<long long>(range.first + range.count - 1) * Config::rows;

  float2 values[MergeStep::states];
  const auto load = [&](int pair) {
#pragma unroll
    for (int i = 0; i < MergeStep::states; ++i)
      if (i < range.count && pair < pairs) values[i] = __ldcg(states + i * pairs + pair);
  };
  load(threadIdx.x);  // in flight while the weights are found
  for (int row = warp; row < Config::rows; row += consumers) {
    const float reference = weigh(shared.merge, partials, row, range, params.factor);
    if (threadIdx.x % 32 == 0) shared.row_reference[row] = reference;
  }
  sync_consumers();
  for (int pair = threadIdx.x; pair < pairs; pair += consumer_threads) {
    if (pair >= consumer_threads) load(pair);
    const int row = pair / row_pairs, column = pair % row_pairs * 2;
    const MergedPair merged(values, shared.merge, row, range.count);
    const float reference = shared.row_reference[row];
    if (range.last) {
      store_merged(params, item, kv_head, merged, reference, row, column);
      continue;
    }
    states[(range.count - 1) * pairs + pair] = merged.out;
    if (column != 0) continue;
    partials.reference[total + row] = reference;
    partials.sum[total + row] = merged.sum;
  }
  sync_consumers();  // before shared memory gets its next use
}

// A chunk has ended, and with it perhaps the item.
__device__ __forceinline__ void finish_chunk(const ForwardParams& params, DecodeShared& shared,
                                             const Pass& pass, const Running& running, const Outputs& out,
                                             Total& total, int warp, int rank) {
  if (keeps_sums(warp)) merge_kept(params, shared, pass, running, total, warp, rank);
  sync_consumers();
  merge_outputs(total.out, out, shared);
  if (!pass.ends_item) return;
  const SplitItem& item = shared.items[pass.item];
  if (item.states <= 1) return store_output(params, shared, pass, total.out, warp, rank);
  store_partial(params, shared, pass, total.out, warp, rank);
  int step = max(0, item.state - 1) / merge_step;
  while (arrive_last(params, shared, item, pass.kv_head, step)) {
    merge_states(params, shared, item, pass.kv_head, step);
    if (StepRange(step++, item.states).last) break;
  }
}

}  // namespace chorale::kernels
