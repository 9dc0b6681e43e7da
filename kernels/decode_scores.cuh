// The decode kernel's first half: a warp takes one tile of keys, and the warps agree on the rows' references.
#pragma once

#include "decode_fragments.cuh"
#include "softmax.cuh"
#include "visibility.cuh"

namespace chorale::kernels {

// Which tile of a pass a warp takes, and which row group.
struct WarpPart {
  int number, tile, group;  // number: among the block's tiles
  __device__ WarpPart(int warp, int rank)
      : number(warp % own_tiles), tile(number * cluster + rank), group(warp / own_tiles) {}
  // Rows 2c and 2c + 1 of the group are a thread's.
  __device__ int row(int e) const { return 8 * group + threadIdx.x % 4 * 2 + e; }
};

// A thread's scores: keys 16 j + g and + 8 of each 16 keys j: scores[j][2 * (key half) + e].
constexpr int key_blocks = Config::tile / 16;
using Scores = float[key_blocks][4];

// The row that a thread of the warps below row_groups keeps the sums of, over the columns of quad lane c.
__device__ __forceinline__ bool keeps_sums(int warp) { return warp < row_groups; }
__device__ __forceinline__ int kept_row(int warp) { return 8 * warp + threadIdx.x % 32 / 4; }

// On its way through a chunk.
struct Running {
  float reference[2];              // of the rows whose scores the thread has
  float kept_reference, kept_sum;  // of the row that it keeps
  __device__ void reset() {
    reference[0] = reference[1] = -infinity;
    kept_reference = -infinity;
    kept_sum = 0.f;
  }
};

__device__ __forceinline__ void multiply_keys(Scores& scores, const DecodeMemory& memory, u32 slab,
                                              int slab_number, int group, float scale) {
  constexpr int pairs = key_columns / 32;
#pragma unroll
  for (int pair = 0; pair < pairs; ++pair) {
    const int column_pair = slab_number * pairs + pair;
    if (column_pair * 32 >= Config::head_dim) break;
    u32 query[4];
    load_queries(query, memory.shared, group, column_pair);
#pragma unroll
    for (int j = 0; j < key_blocks; ++j) {
      u32 key[2][4];
      load_keys(key, slab, 16 * j, pair, scale);
#pragma unroll
      for (int step = 0; step < 2; ++step)
        mma_m16n8k16<Config::bfloat16>(scores[j], key[step], query[2 * step], query[2 * step + 1]);
    }
  }
}

// Score and mask programs, and the sequence's end.
__device__ __forceinline__ void apply_programs(Scores& scores, const ForwardParams& params,
                                               const DecodeShared& shared, const Pass& pass, WarpPart part) {
  const bool is_partial = pass.is_partial >> part.tile & 1;
  if (!Config::scored && !is_partial) return;
  const SplitItem& item = shared.items[pass.item];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const RowName row(params, pass.kv_head, item.q_position, part.row(e));
    const RowValues values = program_rows(params.plan.tables, item.sequence, row.h, row.q);
#pragma unroll
    for (int i = 0; i < 2 * key_blocks; ++i) {
      const int k = (pass.tile + part.tile) * Config::tile + 8 * i + threadIdx.x % 32 / 4;
      float& score = scores[i / 2][i % 2 * 2 + e];
      score = finished_score(params, score, item.sequence, row, k, is_partial, values,
                             [&] { return program_keys(params.plan.tables, item.sequence, k); });
      if (is_partial && k >= item.kv_len) score = -infinity;
    }
  }
}

// The rows' maxima over the tile, for all warps to see.
__device__ __forceinline__ void publish_maxima(DecodeShared& shared, const Scores& scores, WarpPart part,
                                               int rank) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    float largest = -infinity;
#pragma unroll
    for (int i = 0; i < 2 * key_blocks; ++i) largest = fmaxf(largest, scores[i / 2][i % 2 * 2 + e]);
    for (int other = 4; other < 32; other *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
    if (threadIdx.x % 32 < 4)
      share(shared.tile_maxima[part.row(e)].tile[part.tile], largest, shared.maxima_there, rank);
  }
}

// References before the warp's tile: those before it in the pass raise them in turn, or do not.
__device__ __forceinline__ void raise_references(float (&reference)[2], const DecodeShared& shared,
                                                 float factor, WarpPart part) {
  const TileMaxima maxima[2] = {shared.tile_maxima[part.row(0)], shared.tile_maxima[part.row(1)]};
#pragma unroll
  for (int tile = 0; tile < pass_tiles - 1; ++tile) {
    if (tile == part.tile) break;
#pragma unroll
    for (int e = 0; e < 2; ++e) reference[e] = raised_reference(reference[e], maxima[e].tile[tile], factor);
  }
}

// Scores become probabilities.
__device__ __forceinline__ void take_probabilities(Scores& scores, Running& running, DecodeShared& shared,
                                                   float factor, WarpPart part, int rank) {
  const int g = threadIdx.x % 32 / 4;
  raise_references(running.reference, shared, factor, part);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = part.row(e);
    const float before = running.reference[e];
    const float reference = raised_reference(before, shared.tile_maxima[row].tile[part.tile], factor);
    const float exponent = negative_exponent(reference, factor);
    // Thread g has columns 8 i + g: what the quad lane g / 2 of the order calls even or odd.
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 2 * key_blocks; ++i) {
      float& x = scores[i / 2][i % 2 * 2 + e];
      x = probability(x, factor, exponent);
      sum = i == 0 ? x : __fadd_rn(sum, x);
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 4));
    if (g % 2 == 0) share(shared.tile_sum[part.tile][row][g / 2], sum, shared.p_there, rank);
    if (g == 0) {
      share(shared.rescale[part.tile][row], rescale_factor(before, reference, factor), shared.p_there, rank);
      share(shared.tile_reference[part.tile][row], reference, shared.p_there, rank);
    }
  }
}

__device__ __forceinline__ void publish_probabilities(DecodeShared& shared, const Scores& scores,
                                                      WarpPart part, int rank) {
  const int lane = threadIdx.x % 32;
  auto& keys = shared.p.values[part.group];
#pragma unroll
  for (int j = 0; j < key_blocks; j += 2) {
    const float(&x)[4] = scores[j], (&y)[4] = scores[j + 1];
    store_matrices(shared_address(keys[part.tile * Config::tile + 16 * j + lane]), pack(x[0], x[1]),
                   pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3]));
  }
  if constexpr (cluster == 1) return;
  __syncwarp();
  for (int key = part.tile * Config::tile + lane; key < (part.tile + 1) * Config::tile; key += 32) {
    uint4& rows = *reinterpret_cast<uint4*>(keys[key]);
    for (int distance = 1; distance < cluster; ++distance)
      send(rows, rows, shared.p_there, (rank + distance) % cluster);
  }
}

// References and sums after the pass.
__device__ __forceinline__ void fold_tiles(Running& running, const DecodeShared& shared, u32 visible,
                                           WarpPart part, int warp) {
  if (visible == 0) return;
  const int last = 31 - __clz(visible);
#pragma unroll
  for (int e = 0; e < 2; ++e) running.reference[e] = shared.tile_reference[last][part.row(e)];
  if (!keeps_sums(warp)) return;
  const int row = kept_row(warp);
  running.kept_reference = shared.tile_reference[last][row];
#pragma unroll
  for (int tile = 0; tile < pass_tiles; ++tile)
    if (visible >> tile & 1)
      running.kept_sum =
          __fmaf_rn(running.kept_sum, shared.rescale[tile][row], shared.tile_sum[tile][row][threadIdx.x % 4]);
}

// Everything from keys to probabilities, which are in shared memory afterwards, with what rescales the output
// before each tile.
__device__ __forceinline__ void take_keys(const ForwardParams& params, DecodeMemory& memory, const Pass& pass,
                                          Progress& progress, Running& running, u32 parity, int warp,
                                          int rank) {
  DecodeShared& shared = memory.shared;
  const WarpPart part(warp, rank);
  const u32 own = pass.visible & first_blocks_tiles << rank;
  const bool works = pass.visible >> part.tile & 1;
  Scores scores = {};
  if (works) {
    SlabRing slab = progress.slab;
    slab.used += __popc(own & ((1u << part.tile) - 1)) * key_slabs;
    const float scale = Config::fp8_cache ? params.k_scale[pass.kv_head] : 1.f;
#pragma unroll
    for (int number = 0; number < key_slabs; ++number, ++slab.used) {
      mbarrier_wait(shared_address(memory.key_full, part.number) + number * sizeof(u64),
                    progress.key_parity >> part.tile & 1);
      multiply_keys(scores, memory, shared_address(memory.slab, slab.index()), number, part.group, scale);
      warp_arrive(shared_address(memory.slab_free, slab.index()), own_tiles);
    }
    apply_programs(scores, params, shared, pass, part);
    publish_maxima(shared, scores, part, rank);
  } else if (threadIdx.x % 32 < 8) {
    share(shared.tile_maxima[8 * part.group + threadIdx.x % 32].tile[part.tile], -infinity,
          shared.maxima_there, rank);
  }
  progress.slab.used += __popc(own) * key_slabs;
  progress.key_parity ^= pass.visible;
  constexpr u32 maxima_bytes = (pass_tiles - own_tiles) * padded_rows * sizeof(float),
                others_words = (cluster - 1) * sizeof(u32),
                p_bytes = padded_rows * (Config::tile * sizeof(u16) + 6 * sizeof(float));  // of a tile
  meet(shared.maxima_there, maxima_bytes, parity);
  // A block without a visible tile sends no probabilities, but others wait for this before they go on to the
  // next pass: its maxima must not be counted with these.
  if (cluster > 1 && threadIdx.x == 0) share(shared.maxima_seen, 0u, shared.p_there, rank);

  if (Config::lanes_arrive || threadIdx.x == 0)
    mbarrier_arrive(&shared.pass_free);  // all have read it, and the queries
  if (works) {
    take_probabilities(scores, running, shared, params.factor, part, rank);
    publish_probabilities(shared, scores, part, rank);
  }
  meet(shared.p_there, __popc(pass.visible ^ own) * p_bytes + others_words, parity);
  fold_tiles(running, shared, pass.visible, part, warp);
}

}  // namespace chorale::kernels
