// The decode kernel's second half: a warp multiplies its own columns of all tiles' values.
#pragma once

#include "decode_fragments.cuh"
#include "program.cuh"

namespace chorale::kernels {

// Columns are dealt in blocks of 16: to the cluster's blocks of threads many in a row, to their warps in
// turn.
constexpr int slab_value_blocks = value_columns / 16, all_value_blocks = Config::value_dim / 16;
constexpr int value_blocks =
    brings_own_columns ? value_slabs * slab_value_blocks : (all_value_blocks + cluster - 1) / cluster;
constexpr int warp_value_blocks = (value_blocks + consumers - 1) / consumers;

// Which of all blocks is the warp's `i`th, and which of those that its block of threads brings.
struct ValueBlock {
  int of_all, of_brought;
  bool is_real;
  __device__ ValueBlock(int warp, int i, int rank) {
    const int own = warp + i * consumers;
    of_all = rank * value_blocks + own;
    of_brought = brings_own_columns ? own : of_all;
    is_real = own < value_blocks && of_all < all_value_blocks;
  }
};

// A thread's outputs: columns column_of(half) of each of its blocks, rows 8 n + 2c and + 1:
// outputs[block][n][2 * half + (row)].
using Outputs = float[warp_value_blocks][row_groups][4];

__device__ __forceinline__ void clear(Outputs& out) {
  for (auto& block : out)
    for (auto& group : block)
      for (float& x : group) x = 0.f;
}

__device__ __forceinline__ void rescale(float (&out)[row_groups][4], const DecodeShared& shared, int tile) {
#pragma unroll
  for (int n = 0; n < row_groups; ++n) {
    const float2 by = *reinterpret_cast<const float2*>(&shared.rescale[tile][8 * n + threadIdx.x % 4 * 2]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      out[n][2 * half] = __fmul_rn(out[n][2 * half], by.x);
      out[n][2 * half + 1] = __fmul_rn(out[n][2 * half + 1], by.y);
    }
  }
}

// 0 times NaN is NaN: values past the sequence's end, `live` keys of the 32, become zero.
__device__ __forceinline__ void clear_dead_values(u32 (&value)[2][4], int live) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int key = i / 2 * 8 + threadIdx.x % 4 * 2;
    u32& x = value[i / 4][i / 2 % 2 * 2 + i % 2];
    if (key >= live)
      x = 0;
    else if (key + 1 >= live)
      x &= 0xffffu;
  }
}

// So do values that are not finite; true where there was one. add_infinite_values() puts them back where they
// are seen.
__device__ __forceinline__ bool clear_infinite_values(u32 (&value)[2][4]) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < 8; ++i) found |= clear_infinite<Config::bfloat16>(value[i / 4][i % 4]);
  return found;
}
__device__ __forceinline__ float add_infinite_values(float out, const ForwardParams& params, const Pass& pass,
                                                     const DecodeShared& shared, u32 values, int tile,
                                                     int first, int row, int column, float scale) {
  const SplitItem& item = shared.items[pass.item];
  const RowName name(params, pass.kv_head, item.q_position, row);
  for (int key = first; key < first + 32; ++key) {
    const int k = (pass.tile + tile) * Config::tile + key;
    if (k >= item.kv_len) break;
    const float value = value_element(values, key, column, scale);
    if (fabsf(value) < infinity) continue;
    bool visible = true;
    if constexpr (Config::masked) visible = is_visible(params, item.sequence, name, k);
    if (!visible) continue;
    const float p = unpack<Config::bfloat16>(shared.p.values[row / 8][tile * Config::tile + key][row % 8]);
    out = __fadd_rn(out, __fmul_rn(p, value));
  }
  return out;
}

// One tile's values of one block of columns. The products are one chain: all that they need is asked for
// before the first.
template <bool is_partial>
__device__ __forceinline__ void multiply_values(float (&out)[row_groups][4], const ForwardParams& params,
                                                const DecodeShared& shared, const Pass& pass, u32 values,
                                                int tile, ValueBlock block, float scale) {
  constexpr int steps = Config::tile / 32;
  const int piece = block.of_brought % slab_value_blocks;
  u32 value[steps][2][4], p[steps][row_groups][4];
#pragma unroll
  for (int i = 0; i < steps; ++i) {
    load_values(value[i], values, 32 * i, piece, scale);
#pragma unroll
    for (int n = 0; n < row_groups; ++n)
      load_probabilities(p[i][n], shared.p, n, tile * Config::tile + 32 * i);
  }
  rescale(out, shared, tile);
#pragma unroll
  for (int i = 0; i < steps; ++i) {
    bool infinite = false;
    if constexpr (is_partial) {
      const int live = shared.items[pass.item].kv_len - (pass.tile + tile) * Config::tile;
      clear_dead_values(value[i], live - 32 * i);
      if constexpr (Config::masked) infinite = __any_sync(~0u, clear_infinite_values(value[i]));
    }
#pragma unroll
    for (int step = 0; step < 2; ++step)
#pragma unroll
      for (int n = 0; n < row_groups; ++n)
        mma_m16n8k16<Config::bfloat16>(out[n], value[i][step], p[i][n][2 * step], p[i][n][2 * step + 1]);
    if (infinite)
      for (int n = 0; n < row_groups; ++n)
        for (int e = 0; e < 4; ++e)
          out[n][e] =
              add_infinite_values(out[n][e], params, pass, shared, values, tile, 32 * i,
                                  8 * n + threadIdx.x % 4 * 2 + e % 2, 16 * piece + column_of(e / 2), scale);
  }
}

// Tiles in ascending order.
__device__ __forceinline__ void take_values(const ForwardParams& params, DecodeMemory& memory,
                                            const Pass& pass, Progress& progress, Outputs& out, int warp,
                                            int rank) {
  const float scale = Config::fp8_cache ? params.v_scale[pass.kv_head] : 1.f;
  for (u32 left = pass.visible; left != 0;) {
    const u32 together = take_slab_tiles(left);
#pragma unroll
    for (int number = 0; number < value_slabs; ++number, ++progress.slab.used) {
      const int slot = progress.slab.index();
      mbarrier_wait(shared_address(memory.value_full, slot), progress.value_parity >> slot & 1);
      progress.value_parity ^= 1u << slot;
      for (u32 tiles = together; tiles != 0; tiles &= tiles - 1) {
        const int tile = __ffs(tiles) - 1;
        const u32 values = shared_address(memory.slab, slot) + tile % value_tiles * value_tile_bytes;
#pragma unroll
        for (int i = 0; i < warp_value_blocks; ++i) {
          const ValueBlock block(warp, i, rank);
          if (!block.is_real || block.of_brought / slab_value_blocks != number) continue;
          if (pass.is_partial >> tile & 1)
            multiply_values<true>(out[i], params, memory.shared, pass, values, tile, block, scale);
          else
            multiply_values<false>(out[i], params, memory.shared, pass, values, tile, block, scale);
        }
      }
      warp_arrive(shared_address(memory.slab_free, slot));
    }
  }
}

}  // namespace chorale::kernels
