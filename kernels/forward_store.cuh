// The end of a row block: outputs and log-sum-exps to memory.
#pragma once

#include "forward_rows.cuh"
#include "params.h"
#include "schedule.cuh"

namespace chorale::kernels {

// Rows of a warp make whole positions: its outputs are boxes of the copy engine's.
constexpr int warp_rows = forward_warp_rows;
constexpr bool stores_boxes = warp_rows % Config::group == 0;

// The ends of a thread's two rows, whose log-sum-exps it stores.
struct RowEnds {
  float factor[2];

  __device__ __forceinline__ RowEnds(const Softmax& state, const ForwardParams& params, const Item& item,
                                     const ThreadRows& rows) {
    constexpr int group = Config::group;
    const int lane = lane_now(), live = item.positions * group;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = rows.of(r, lane), head = item.kv_head * group + row % group;
      const float sink = Config::sinks && row < live ? params.sinks[head] : -infinity;
      const RowEnd end = row_end(state.reference[r], state.sum[r], params.factor, sink);
      factor[r] = end.factor;
      const long long place = item.q_row + row / group;
      store_4_bytes_if(params.lse != nullptr && lane % 4 == 0 && row < live,
                       params.lse + place * (params.kv_heads * group) + head, end.lse);
    }
  }
};

// Of rows that have seen no key: zeros, which may have either sign by now, become +0. Rare.
__device__ __forceinline__ void clear_unseen(float (&out)[out_count], const RowEnds& end) {
  if (!__any_sync(~0u, end.factor[0] == 0.f || end.factor[1] == 0.f)) return;
#pragma unroll
  for (int i = 0; i < out_count; ++i) out[i] = end.factor[i / 2 % 2] == 0.f ? 0.f : out[i];
}

// Staged rows of which some do not exist, 64 columns from `column` on, by the warp's threads: 8 lanes a row.
__device__ __forceinline__ void store_rows(u32 staged, int column, int live, const ForwardParams& params,
                                           const Item& item, const ThreadRows& rows) {
  constexpr int group = Config::group;
  const int lane = lane_now(), piece = lane % 8;  // of 8 columns
  if (column + 8 * piece >= Config::value_dim) return;
  u16* const to = static_cast<u16*>(params.out.data) + item.q_row * params.out.token_stride +
                  item.kv_head * group * params.out.head_stride + column + 8 * piece;
#pragma unroll 1
  for (int i = lane / 8; i < live; i += 4) {
    const int row = rows.first() + i;
    u16* const place = to + row / group * params.out.token_stride + row % group * params.out.head_stride;
    *reinterpret_cast<uint4*>(place) = load_16_bytes(staged + i * block_row_bytes + (piece ^ i % 8) * 16);
  }
}

// Divides, rounds and stores a warp's 16 rows, 64 columns at a time: through shared memory, where every warp
// has rows of its own, swizzled as the copy engine has it. True: all of the warp's outputs are finite, those
// of rows that do not exist, too.
__device__ __forceinline__ bool store(float (&out)[out_count], const RowEnds& end,
                                      const ForwardParams& params, const Item& item, const ThreadRows& rows,
                                      unsigned char* staging) {
  clear_unseen(out, end);
  const int lane = lane_now();
  const int live = min(item.positions * Config::group - rows.first(), warp_rows);  // rows that exist
  const u32 staged = shared_address(staging) + rows.warp * (warp_rows * block_row_bytes);
  const u32 written = staged + lane % 16 * block_row_bytes + (lane / 16 ^ lane % 8) * 16;
  if (item.careful) wait_for_stores();  // of what is written over
  u32 zero[2] = {};                     // as are_all_finite() has it, for each row
#pragma unroll
  for (int first = 0; first < value_blocks; first += staged_blocks) {
    await_staging();
#pragma unroll
    for (int i = 0; i < 4 * staged_blocks; ++i) {  // of 16 columns
      const int column = 64 * first + 16 * i;
      if (column >= Config::value_dim) continue;
      u32 d[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* two = out + column / 2 + 2 * j;
        const float factor = end.factor[j % 2];
        d[j] = pack<Config::bfloat16>(__fmul_rn(two[0], factor), __fmul_rn(two[1], factor));
        zero[j % 2] = add_zero_times<Config::bfloat16>(zero[j % 2], d[j]);
      }
      store_matrices((written ^ 32 * (i % 4)) + i / 4 * staged_bytes, d[0], d[1], d[2], d[3]);
    }
    const int last = min(first + staged_blocks, value_blocks);
    if (stores_boxes && live >= warp_rows) {
      fence_proxy_async();
      __syncwarp();
      if (lane == 0) {
#pragma unroll
        for (int block = first; block < last; ++block)
          store_box(&params.out_boxes, 64 * block, item.kv_head * Config::group,
                    item.q_row + rows.first() / Config::group, staged + (block - first) * staged_bytes);
        end_store_group();
      }
    } else {
      __syncwarp();
#pragma unroll 1
      for (int block = first; block < last; ++block)
        store_rows(staged + (block - first) * staged_bytes, 64 * block, live, params, item, rows);
    }
    __syncwarp();
  }
  return __all_sync(~0u, ((zero[0] | zero[1]) & 0x7fff7fffu) == 0);
}

}  // namespace chorale::kernels
