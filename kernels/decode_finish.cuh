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

__device__ __forceinline__ RowEnd end_row(const ForwardParams& params, const OutputRow& row, float maximum,
                                          float sum) {
  const float sink = Config::sinks && row.real ? params.sinks[row.head] : -infinity;
  return row_end(maximum, sum, params.factor, sink);
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
      const RowEnd end = end_row(params, row, running.maximum[n][e], shared.row_sum[r]);
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
  float *out, *maximum, *sum;  // [chunks, rows, value_dim], [chunks, rows]
  __device__ Partials(const ForwardParams& params, const Pass& pass) {
    const long long first =
        (static_cast<long long>(pass.kv_head) * params.slots + pass.first_slot) * Config::rows;
    out = params.partial_out + first * Config::value_dim;
    maximum = params.partial_max + first;
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
        partials.maximum[at] = running.maximum[n][e];
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

// Whether all other chunks of the row block are done, and their states visible.
__device__ __forceinline__ bool arrive_last(const ForwardParams& params, DecodeShared& shared,
                                            const Pass& pass) {
  sync_consumers();
  if (threadIdx.x == 0) {
    const u32 last = pass.chunks - 1;
    u32* arrivals = reinterpret_cast<u32*>(params.arrivals) + pass.arrivals;
    shared.is_last_arrival = count_arrival(arrivals, last) == last;
  }
  sync_consumers();
  return shared.is_last_arrival;
}

// Weights of a batch of chunks for one row, by a warp: lane i has chunk `first` + i. Updates the row's
// maximum over the chunks before.
__device__ __forceinline__ void weigh(MergeBatch& batch, const Partials& partials, int row, int first,
                                      int chunks, float factor, float& total_maximum) {
  const int lane = threadIdx.x % 32, chunk = first + lane;
  const bool real = chunk < chunks;
  const float own = real ? __ldcg(partials.maximum + chunk * Config::rows + row) : -infinity;
  const float sum = real ? __ldcg(partials.sum + chunk * Config::rows + row) : 0.f;
  float through = own;  // the maximum of this chunk and those before it
  for (int distance = 1; distance < 32; distance *= 2) {
    const float earlier = __shfl_up_sync(~0u, through, distance);
    if (lane >= distance) through = fmaxf(through, earlier);
  }
  through = fmaxf(through, total_maximum);
  float before = __shfl_up_sync(~0u, through, 1);
  if (lane == 0) before = total_maximum;
  const MergeWeights weights = merge_weights(before, own, factor);
  *reinterpret_cast<float4*>(batch.weights[row][lane]) = {weights.total, weights.chunk, sum, 0.f};
  total_maximum = __shfl_sync(~0u, through, 31);
}

// Two columns of a row that a thread merges, with the row's sum.
struct MergedPair {
  float2 out;
  float sum;

  __device__ __forceinline__ void take(const float2 (&values)[MergeBatch::chunks], const MergeBatch& batch,
                                       int row, int chunks, bool begins) {
#pragma unroll
    for (int i = 0; i < MergeBatch::chunks; ++i) {
      if (i >= chunks) break;
      const float4 w = *reinterpret_cast<const float4*>(batch.weights[row][i]);
      const MergeWeights weights = {0.f, w.x, w.y};
      const bool is_first = begins && i == 0;
      out.x = is_first ? values[i].x : merge(out.x, values[i].x, weights);
      out.y = is_first ? values[i].y : merge(out.y, values[i].y, weights);
      sum = is_first ? w.z : merge(sum, w.z, weights);
    }
  }
};

// The states of all chunks, in ascending order; the threads share the pairs of columns.
__device__ __forceinline__ void merge_chunks(const ForwardParams& params, DecodeShared& shared,
                                             const Pass& pass) {
  constexpr int row_pairs = Config::value_dim / 2, pairs = Config::rows * row_pairs;
  constexpr int thread_pairs = (pairs + consumer_threads - 1) / consumer_threads;
  constexpr int warp_rows = (Config::rows + consumers - 1) / consumers;
  const Partials partials(params, pass);
  const int warp = threadIdx.x / 32;
  MergedPair merged[thread_pairs];
  float maximum[warp_rows];
#pragma unroll
  for (int i = 0; i < warp_rows; ++i) maximum[i] = -infinity;

  for (int first = 0; first < pass.chunks; first += MergeBatch::chunks) {
    const int chunks = min(MergeBatch::chunks, pass.chunks - first);
    float2 values[MergeBatch::chunks];
    const auto load = [&](int i) {
      const int pair = threadIdx.x + i * consumer_threads;
      const float* from = partials.out + (static_cast<long long>(first) * pairs + pair) * 2;
#pragma unroll
      for (int chunk = 0; chunk < MergeBatch::chunks; ++chunk)
        if (chunk < chunks && pair < pairs)
          values[chunk] = __ldcg(reinterpret_cast<const float2*>(from + chunk * 2 * pairs));
    };
    load(0);  // in flight while the weights are found
#pragma unroll
    for (int i = 0; i < warp_rows; ++i)
      if (const int row = warp + i * consumers; row < Config::rows)
        weigh(shared.merge, partials, row, first, pass.chunks, params.factor, maximum[i]);
    sync_consumers();
#pragma unroll
    for (int i = 0; i < thread_pairs; ++i) {
      const int pair = threadIdx.x + i * consumer_threads;
      if (i > 0) load(i);
      if (pair < pairs) merged[i].take(values, shared.merge, pair / row_pairs, chunks, first == 0);
    }
    sync_consumers();
  }
#pragma unroll
  for (int i = 0; i < warp_rows; ++i)
    if (const int row = warp + i * consumers; row < Config::rows && threadIdx.x % 32 == 0)
      shared.row_sum[row] = maximum[i];
  sync_consumers();
#pragma unroll
  for (int i = 0; i < thread_pairs; ++i) {
    const int pair = threadIdx.x + i * consumer_threads, column = pair % row_pairs * 2;
    const OutputRow row(pass, pair / row_pairs);
    if (!row.real) continue;
    const RowEnd end = end_row(params, row, shared.row_sum[pair / row_pairs], merged[i].sum);
    if (column == 0) store_lse(params, row, end.lse);
    *reinterpret_cast<u32*>(row.data(params.out) + column) =
        pack(finished(merged[i].out.x, end.factor), finished(merged[i].out.y, end.factor));
  }
  sync_consumers();  // before shared memory gets its next use
}

__device__ __forceinline__ void finish(const ForwardParams& params, DecodeShared& shared, const Pass& pass,
                                       const Running& running, const Outputs& out, int warp) {
  sync_consumers();  // row sums
  if (pass.chunks <= 1) return store_output(params, shared, pass, running, out, warp);
  store_partial(params, shared, pass, running, out, warp);
  if (arrive_last(params, shared, pass)) merge_chunks(params, shared, pass);
}

}  // namespace chorale::kernels
