// What becomes of a chunk's state: the output where it is the only one, else a partial state in memory, which
// the last of the row block's chunks to be done merges with the others, in order.
#pragma once

#include "decode_scores.cuh"
#include "decode_values.cuh"

namespace chorale::kernels {

// Where a row of the row block goes.
struct OutputRow {
  bool real;
  int token, head;
  __device__ OutputRow(const Pass& pass, int row)
      : real(row < Config::rows && row / Config::group < pass.positions),
        token(pass.q_row + row / Config::group),
        head(pass.kv_head * Config::group + row % Config::group) {}
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

__device__ __forceinline__ void store_output(const ForwardParams& params, const DecodeShared& shared,
                                             const Pass& pass, const Running& running, const Outputs& out,
                                             int warp) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = 8 * n + lane % 4 * 2 + e;
      const OutputRow row(pass, r);
      if (!row.real) continue;
      const RowEnd end = end_row(params, row, running.reference[n][e], shared.row_sum[r]);
      if (warp == 0 && lane / 4 == 0) store_lse(params, row, end.lse);
#pragma unroll
      for (int i = 0; i < warp_value_blocks; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (value_block(warp, i) < value_blocks)
            row.data(params.out)[16 * value_block(warp, i) + column_of(half)] =
                static_cast<u16>(pack(finished(out[i][n][2 * half + e], end.factor), 0.f));
    }
}

// The partial states of a row block under a KV head.
struct Partials {
  float *out, *reference, *sum;  // [chunks, rows, value_dim], [chunks, rows]
  __device__ Partials(const ForwardParams& params, const Pass& pass) {
    const long long first =
        (static_cast<long long>(pass.kv_head) * params.slots + pass.first_slot) * Config::rows;
    out = params.partial_out + first * Config::value_dim;
    reference = params.partial_reference + first;
    sum = params.partial_sum + first;
  }
};

__device__ __forceinline__ void store_partial(const ForwardParams& params, const DecodeShared& shared,
                                              const Pass& pass, const Running& running, const Outputs& out,
                                              int warp) {
  const Partials partials(params, pass);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = 8 * n + lane % 4 * 2 + e;
      if (row >= Config::rows) continue;
      const long long at = static_cast<long long>(pass.chunk) * Config::rows + row;
      if (warp == 0 && lane / 4 == 0) {
        partials.reference[at] = running.reference[n][e];
        partials.sum[at] = shared.row_sum[row];
      }
#pragma unroll
      for (int i = 0; i < warp_value_blocks; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (value_block(warp, i) < value_blocks)
            partials.out[at * Config::value_dim + 16 * value_block(warp, i) + column_of(half)] =
                out[i][n][2 * half + e];
    }
}

// Step i of a row block's merges takes the states of slots 31 i to 31 i + 31: the first is the total so far,
// or chunk 0, and the last becomes the total. Steps follow one another in order; each is done by whoever is
// the last to bring one of its states, while other blocks of threads are still busy with later chunks.
struct StepRange {
  int first, count;
  bool last;
  __device__ StepRange(int step, int chunks)
      : first(step * merge_step),
        count(min(MergeStep::states, chunks - first)),
        last(first + count == chunks) {}
};

// Whether all other states of the step are there, and visible.
__device__ __forceinline__ bool arrive_last(const ForwardParams& params, DecodeShared& shared,
                                            const Pass& pass, int step) {
  sync_consumers();
  if (threadIdx.x == 0) {
    const u32 last = StepRange(step, pass.chunks).count - 1;
    u32* arrivals = reinterpret_cast<u32*>(params.arrivals) + pass.arrivals + step;
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

__device__ __forceinline__ void store_merged(const ForwardParams& params, const Pass& pass,
                                             const MergedPair& merged, float reference, int row, int column) {
  const OutputRow to(pass, row);
  if (!to.real) return;
  const RowEnd end = end_row(params, to, reference, merged.sum);
  if (column == 0) store_lse(params, to, end.lse);
  *reinterpret_cast<u32*>(to.data(params.out) + column) =
      pack(finished(merged.out.x, end.factor), finished(merged.out.y, end.factor));
}

// One step, in ascending order; the threads share the pairs of columns.
__device__ __forceinline__ void merge_states(const ForwardParams& params, DecodeShared& shared,
                                             const Pass& pass, int step) {
  constexpr int row_pairs = Config::value_dim / 2, pairs = Config::rows * row_pairs;
  const Partials partials(params, pass);
  const StepRange range(step, pass.chunks);
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
    if (threadIdx.x % 32 == 0) shared.row_sum[row] = reference;
  }
  sync_consumers();
  for (int pair = threadIdx.x; pair < pairs; pair += consumer_threads) {
    if (pair >= consumer_threads) load(pair);
    const int row = pair / row_pairs, column = pair % row_pairs * 2;
    const MergedPair merged(values, shared.merge, row, range.count);
    const float reference = shared.row_sum[row];
    if (range.last) {
      store_merged(params, pass, merged, reference, row, column);
      continue;
    }
    states[(range.count - 1) * pairs + pair] = merged.out;
    if (column != 0) continue;
    partials.reference[total + row] = reference;
    partials.sum[total + row] = merged.sum;
  }
  sync_consumers();  // before shared memory gets its next use
}

__device__ __forceinline__ void finish(const ForwardParams& params, DecodeShared& shared, const Pass& pass,
                                       const Running& running, const Outputs& out, int warp) {
  sync_consumers();  // row sums
  if (pass.chunks <= 1) return store_output(params, shared, pass, running, out, warp);
  store_partial(params, shared, pass, running, out, warp);
  int step = max(0, pass.chunk - 1) / merge_step;
  while (arrive_last(params, shared, pass, step)) {
    merge_states(params, shared, pass, step);
    if (StepRange(step++, pass.chunks).last) break;
  }
}

}  // namespace chorale::kernels
