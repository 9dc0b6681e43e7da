// Fragments of m16n8k16 matrix instructions from slabs. Keys and value columns are the 16 rows of A, the rows
// of a row block are the 8 columns of B: so a row block of 8 wastes nothing. Steps of 16 come in pairs, "32".
//
// In a fragment, thread g of 8, c of 4 (lane = 4 g + c) holds of A rows g and g + 8, and of the step's 16
// products 2c, 2c + 1, 2c + 8 and 2c + 9. Which product has which number within a step changes no bit, so
// 8-bit codes are taken as ldmatrix hands them out: as 4c to 4c + 3.
#pragma once

#include "codes.cuh"
#include "decode_memory.cuh"

namespace chorale::kernels {

// Where the 16 bytes `piece` of a row of 128 lie.
__device__ __forceinline__ u32 swizzled(int row, int piece) {
  return row * slab_row_bytes + ((piece ^ (row & 7)) << 4);
}
// The same of a slab's row, which has 8 pieces in each of `blocks` column blocks. (Boxes have 8 rows or more,
// or lie one after another like rows of one.)
template <int blocks>
__device__ __forceinline__ u32 slab_place(int row, int piece) {
  if constexpr (blocks == 1) return swizzled(row, piece);
  const int first = (row / box_slots * blocks + piece / 8) * box_slots;  // of the box and its block
  return swizzled(first + row % box_slots, piece % 8);
}

// Rows of a row group: b[2 s], b[2 s + 1] of step s.
__device__ __forceinline__ void load_queries(u32 (&b)[4], const DecodeShared& shared, int group, int pair) {
  const int lane = threadIdx.x % 32;
  const u32 slab = shared_address(shared.query[pair / 2]);
  if constexpr (!Config::fp8_cache) {
    load_matrices(b, slab + swizzled(8 * group + lane % 8, pair % 2 * 4 + lane / 8));
  } else {
    const unsigned char* rows = shared.query[pair / 2];
    for (int step = 0; step < 2; ++step) {
      const int column = pair % 2 * 32 + step * 16 + lane % 4 * 4;
      const uint2 x =
          *reinterpret_cast<const uint2*>(rows + swizzled(8 * group + lane / 4, column / 8) + column % 8 * 2);
      b[2 * step] = x.x;
      b[2 * step + 1] = x.y;
    }
  }
}

// 16 keys by two steps of columns.
__device__ __forceinline__ void load_keys(u32 (&a)[2][4], u32 slab, int keys, int pair, float scale) {
  const int lane = threadIdx.x % 32;
  if constexpr (!Config::fp8_cache) {
    for (int step = 0; step < 2; ++step)
      load_matrices(a[step],
                    slab + slab_place<slab_blocks>(keys + lane % 16, pair * 4 + step * 2 + lane / 16));
  } else {
    u32 codes[4];
    load_matrices(codes, slab + slab_place<slab_blocks>(keys + lane % 16, pair * 2 + lane / 16));
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2] = decode_pair(codes[i], scale);
      a[i / 2][i % 2 + 2] = decode_pair(codes[i] >> 16, scale);
    }
  }
}

// 16 value columns by two steps of keys. `piece` counts 16 columns within the slab. Rows of A: column_of().
__device__ __forceinline__ void load_values(u32 (&a)[2][4], u32 values, int keys, int piece, float scale) {
  const int lane = threadIdx.x % 32;
  if constexpr (!Config::fp8_cache) {
    for (int step = 0; step < 2; ++step)
      load_matrices_transposed(
          a[step], values + slab_place<value_blocks_of_box>(keys + step * 16 + lane % 8 + lane / 16 * 8,
                                                            piece * 2 + lane / 8 % 2));
  } else {
    u32 codes[4];
    load_matrices_transposed(codes, values + slab_place<value_blocks_of_box>(keys + lane, piece));
    for (int i = 0; i < 4; ++i) {
      const u32 columns = __byte_perm(codes[i], 0, 0x3120);  // two keys of one column, two of the next
      a[i / 2][i % 2 * 2] = decode_pair(columns, scale);
      a[i / 2][i % 2 * 2 + 1] = decode_pair(columns >> 16, scale);
    }
  }
}
// The column, of 16, that A's row g (half 0) or g + 8 (half 1) stands for.
__device__ __forceinline__ int column_of(int half) {
  const int g = threadIdx.x % 32 / 4;
  return Config::fp8_cache ? 2 * g + half : g + 8 * half;
}
// The element of a tile's values, as load_values() sees it.
__device__ __forceinline__ float value_element(u32 values, int key, int column, float scale) {
  const int byte = column * element_bytes;
  const u32 at = values + slab_place<value_blocks_of_box>(key, byte / 16) + byte % 16;
  if constexpr (!Config::fp8_cache) return unpack<Config::bfloat16>(load_2_bytes(at));
  return unpack<Config::bfloat16>(decode_pair(load_2_bytes(at - at % 2) >> at % 2 * 8, scale));
}

// Probabilities of 32 keys for a row group.
__device__ __forceinline__ void load_probabilities(u32 (&b)[4], const Probabilities& p, int group, int key) {
  load_matrices_transposed(b, shared_address(p.values[group][key + threadIdx.x % 32]));
}

}  // namespace chorale::kernels
