// The decode kernel's first half: a warp takes one tile of keys, and the warps agree on the rows' references.
#pragma once

#include "decode_fragments.cuh"
#include "softmax.cuh"
#include "visibility.cuh"

namespace chorale::kernels {

// A thread's scores of a tile: rows 8 n + 2c and + 1 of each row group n, keys 16 j + g and + 8 of each 16
// keys j: scores[n][j][2 * (key half) + (row)].
constexpr int key_blocks = Config::tile / 16;
using Scores = float[row_groups][key_blocks][4];

// References and sums of rows on their way through a chunk. Every thread knows the references of its rows;
// the sum is that of row 8 * warp + g over the columns of quad lane c, in the warps below row_groups.
struct Running {
  float reference[row_groups][2];
  float sum;
  __device__ void reset() {
    for (int n = 0; n < row_groups; ++n) reference[n][0] = reference[n][1] = -infinity;
    sum = 0.f;
  }
};

__device__ __forceinline__ void multiply_keys(Scores& scores, const DecodeMemory& memory, u32 slab,
                                              int slab_number, float scale) {
  constexpr int pairs = slab_columns / 32;
#pragma unroll
  for (int pair = 0; pair < pairs; ++pair) {
    const int column_pair = slab_number * pairs + pair;
    if (column_pair * 32 >= Config::head_dim) break;
    u32 query[row_groups][4];
#pragma unroll
    for (int n = 0; n < row_groups; ++n) load_queries(query[n], memory.shared, n, column_pair);
#pragma unroll
    for (int j = 0; j < key_blocks; ++j) {
      u32 key[2][4];
      load_keys(key, slab, 16 * j, pair, scale);
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int n = 0; n < row_groups; ++n)
          mma_m16n8k16<Config::bfloat16>(scores[n][j], key[step], query[n][2 * step], query[n][2 * step + 1]);
    }
  }
}

// Score and mask programs, and the sequence's end.
__device__ __forceinline__ void apply_programs(Scores& scores, const ForwardParams& params, const Pass& pass,
                                               int tile, bool is_partial) {
  if (!Config::scored && !is_partial) return;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = 8 * n + lane % 4 * 2 + e;
      const int q = pass.q_position + row / Config::group;
      const int h = params.first_query_head + pass.kv_head * Config::group + row % Config::group;
#pragma unroll
      for (int i = 0; i < 2 * key_blocks; ++i) {
        const int k = tile * Config::tile + 8 * i + lane / 4;
        float& score = scores[n][i / 2][i % 2 * 2 + e];
        score = finished_score(params, score, pass.sequence, pass.kv_len, h, q, k, is_partial);
      }
    }
}

// The rows' maxima over the tile, for all warps to see.
__device__ __forceinline__ void publish_maxima(DecodeShared& shared, const Scores& scores, int warp) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = -infinity;
#pragma unroll
      for (int i = 0; i < 2 * key_blocks; ++i) largest = fmaxf(largest, scores[n][i / 2][i % 2 * 2 + e]);
      for (int other = 4; other < 32; other *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
      if (lane < 4) shared.tile_maximum[warp][8 * n + 2 * lane + e] = largest;
    }
}

// Scores become probabilities; `before` is the reference of the tile before.
__device__ __forceinline__ void take_probabilities(Scores& scores, DecodeShared& shared, float factor,
                                                   int warp, const float (&before)[row_groups][2]) {
  const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = 8 * n + lane % 4 * 2 + e;
      const float reference = raised_reference(before[n][e], shared.tile_maximum[warp][row], factor);
      const float exponent = negative_exponent(reference, factor);
      // Thread g has columns 8 i + g: what the quad lane g / 2 of the order calls even or odd.
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < 2 * key_blocks; ++i) {
        float& x = scores[n][i / 2][i % 2 * 2 + e];
        x = probability(x, factor, exponent);
        sum = i == 0 ? x : __fadd_rn(sum, x);
      }
      sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 4));
      if (g % 2 == 0) shared.tile_sum[warp][row][g / 2] = sum;
      if (g == 0) shared.rescale[warp][row] = rescale_factor(before[n][e], reference, factor);
    }
}

__device__ __forceinline__ void publish_probabilities(DecodeShared& shared, const Scores& scores, int warp) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int j = 0; j < key_blocks; j += 2) {
      const float(&x)[4] = scores[n][j], (&y)[4] = scores[n][j + 1];
      store_matrices(shared_address(shared.p.values[n][warp * Config::tile + 16 * j + lane]),
                     pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3]));
    }
}

// The running sums of rows over the pass.
__device__ __forceinline__ void fold_sums(Running& running, const DecodeShared& shared, u32 visible,
                                          int warp) {
  if (warp >= row_groups) return;
  const int lane = threadIdx.x % 32, row = 8 * warp + lane / 4;
#pragma unroll
  for (int tile = 0; tile < pass_tiles; ++tile)
    if (visible >> tile & 1)
      running.sum = __fmaf_rn(running.sum, shared.rescale[tile][row], shared.tile_sum[tile][row][lane % 4]);
}
__device__ __forceinline__ void publish_sums(const Running& running, DecodeShared& shared, int warp) {
  if (warp >= row_groups) return;
  const int lane = threadIdx.x % 32;
  float sum = running.sum;
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
  if (lane % 4 == 0) shared.row_sum[8 * warp + lane / 4] = sum;
}

// Everything from keys to probabilities, which are in shared memory afterwards, with what rescales the output
// before each tile.
__device__ __forceinline__ void take_keys(const ForwardParams& params, DecodeMemory& memory, const Pass& pass,
                                          Progress& progress, Running& running, int warp) {
  DecodeShared& shared = memory.shared;
  const int lane = threadIdx.x % 32;
  const bool works = pass.visible >> warp & 1;
  Scores scores = {};
  if (works) {
    SlabRing slab = progress.slab;
    slab.used += __popc(pass.visible & ((1u << warp) - 1)) * key_slabs;
    const float scale = Config::fp8_cache ? params.k_scale[pass.kv_head] : 1.f;
#pragma unroll
    for (int number = 0; number < key_slabs; ++number, ++slab.used) {
      mbarrier_wait(&memory.key_full[warp][number], progress.key_parity >> warp & 1);
      multiply_keys(scores, memory, shared_address(memory.slab[slab.index()]), number, scale);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&memory.slab_free[slab.index()], consumers);
    }
    apply_programs(scores, params, pass, pass.tile + warp, pass.is_partial >> warp & 1);
    publish_maxima(shared, scores, warp);
  } else if (lane < padded_rows) {
    shared.tile_maximum[warp][lane] = -infinity;
  }
  progress.slab.used += __popc(pass.visible) * key_slabs;
  progress.key_parity ^= pass.visible;
  __syncwarp();
  if (lane == 0) mbarrier_arrive(&shared.pass_free);
  sync_consumers();

  float before[row_groups][2];
#pragma unroll
  for (int n = 0; n < row_groups; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float reference = running.reference[n][e];
#pragma unroll
      for (int tile = 0; tile < pass_tiles; ++tile) {
        if (tile == warp) before[n][e] = reference;
        reference =
            raised_reference(reference, shared.tile_maximum[tile][8 * n + lane % 4 * 2 + e], params.factor);
      }
      running.reference[n][e] = reference;
    }
  if (works) {
    take_probabilities(scores, shared, params.factor, warp, before);
    publish_probabilities(shared, scores, warp);
  }
  sync_consumers();
  fold_sums(running, shared, pass.visible, warp);
  if (pass.last) publish_sums(running, shared, warp);
}

}  // namespace chorale::kernels
