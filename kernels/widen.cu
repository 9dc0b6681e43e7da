// Widens 8-bit keys and values for the forward kernel, which then reads packed keys of 16 bits. What no row
// of their sequence sees is left out.
#include "codes.cuh"
#include "config.cuh"
#include "params.h"
#include "ptx.cuh"
#include "schedule.cuh"
#include "visibility.cuh"

namespace chorale::kernels {

constexpr int widen_threads = 256, widen_width = 16;  // codes that a thread takes at once

// What a thread has of a tile of keys or values: pieces of rows. A row's pieces are neighbours' work.
template <int dim>
class TilePieces {
 public:
  __device__ __forceinline__ void load(const Rows& rows, long long page_stride, const PlanView& plan,
                                       const Item& item, int first) {
    const char* codes = static_cast<const char*>(rows.data) + item.kv_head * rows.head_stride;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int position = first + row(i);
      if (position >= item.kv_len) continue;
      const SlotPlace place = find_slot(plan, item, position);
      const char* from = codes + place.page * page_stride + place.slot * rows.token_stride + column(i);
      codes_[i] = __ldcs(reinterpret_cast<const uint4*>(from));
    }
  }
  __device__ __forceinline__ void store(const Rows& rows, const Item& item, int first, long long first_row,
                                        float scale) const {
    u16* values = static_cast<u16*>(rows.data) + item.kv_head * rows.head_stride;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (first + row(i) >= item.kv_len) continue;
      auto* to = reinterpret_cast<uint4*>(values + (first_row + row(i)) * rows.token_stride + column(i));
      to[0] = widened(codes_[i].x, codes_[i].y, scale);
      to[1] = widened(codes_[i].z, codes_[i].w, scale);
    }
  }

 private:
  static constexpr int row_pieces = dim / widen_width, count = Config::tile * row_pieces / widen_threads;
  static_assert(count * widen_threads == Config::tile * row_pieces);

  static __device__ int row(int i) { return (i * widen_threads + threadIdx.x) / row_pieces; }
  static __device__ int column(int i) { return (i * widen_threads + threadIdx.x) % row_pieces * widen_width; }
  static __device__ uint4 widened(u32 x, u32 y, float scale) {
    return {decode_pair(x, scale), decode_pair(x >> 16, scale), decode_pair(y, scale),
            decode_pair(y >> 16, scale)};
  }

  uint4 codes_[count];
};

// Tile `index` of the list under one KV head.
__device__ __forceinline__ void widen_tile(const WidenParams& params, int index, int kv_head) {
  const KeyTile tile = params.tiles[index];
  const Sequence sequence = params.plan.sequences[tile.sequence];
  const Item item{tile.sequence,     kv_head,        0, sequence.q_len, sequence.kv_len - sequence.q_len,
                  sequence.kv_first, sequence.kv_len};  // all rows of the sequence
  if (tile_coverage(params.plan, item.rows(params.first_query_head), tile.number) == empty) return;
  const int first = tile.number * Config::tile;
  const long long first_row = static_cast<long long>(index) * Config::tile;
  TilePieces<Config::head_dim> keys;
  TilePieces<Config::value_dim> values;
  keys.load(params.k, params.k_page_stride, params.plan, item, first);
  values.load(params.v, params.v_page_stride, params.plan, item, first);
  keys.store(params.k_wide, item, first, first_row, params.k_scale[kv_head]);
  values.store(params.v_wide, item, first, first_row, params.v_scale[kv_head]);
}

}  // namespace chorale::kernels

extern "C" __device__ const int chorale_widen_threads = chorale::kernels::widen_threads;
extern "C" __device__ const int chorale_widen_smem = 0;

extern "C" __global__ void __launch_bounds__(chorale::kernels::widen_threads)
    chorale_widen(const __grid_constant__ chorale::kernels::WidenParams params) {
  const int count = params.plan.counts->key_tiles * params.heads;
  for (int i = blockIdx.x; i < count; i += gridDim.x)
    chorale::kernels::widen_tile(params, i / params.heads, i % params.heads);
}
