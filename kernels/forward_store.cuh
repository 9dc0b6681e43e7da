// The end of a row block: outputs and log-sum-exps to memory.
#pragma once

#include "forward_rows.cuh"
#include "params.h"
#include "schedule.cuh"

namespace chorale::kernels {

// Divides, rounds and stores a warp's 16 rows, 64 columns at a time: through shared memory, so that pieces of
// 128 bytes leave whole. Every warp has its own rows there, swizzled so that a matrix of 8 rows meets all
// banks. No branch depends on a lane: what must not be stored is predicated. True: all of the
// warp's outputs are finite.
__device__ __forceinline__ bool store(const float (&out)[out_count], const Softmax& state,
                                      const ForwardParams& params, const Item& item, const ThreadRows& rows,
                                      unsigned char* staging) {
  constexpr int group = Config::group;
  const int lane = lane_now(), live = item.positions * group;  // rows that exist
  RowEnd end[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = rows.of(r, lane), head = item.kv_head * group + row % group;
    const float sink = Config::sinks && row < live ? params.sinks[head] : -infinity;
    end[r] = row_end(state.reference[r], state.sum[r], params.factor, sink);
    if (params.lse != nullptr) {
      const long long place = item.q_row + row / group;
      store_4_bytes_if(lane % 4 == 0 && row < live, params.lse + place * (params.kv_heads * group) + head,
                       end[r].lse);
    }
  }
  const u32 staged = shared_address(staging) + rows.warp * (16 * block_row_bytes);
  const u32 written = staged + lane % 16 * block_row_bytes + (lane / 16 ^ lane % 8) * 16;
  const int piece = lane % 8;  // of 8 columns: 8 lanes a row
  u32 zero[2] = {};            // as are_all_finite() has it, for each row
  u16* const to = static_cast<u16*>(params.out.data) + item.q_row * params.out.token_stride +
                  item.kv_head * group * params.out.head_stride + 8 * piece;
#pragma unroll
  for (int first = 0; first < value_blocks; first += staged_blocks) {
    constexpr int pieces = 4 * staged_blocks;
    if (first > 0) __syncwarp();  // all have read what was there
#pragma unroll
    for (int i = 0; i < pieces; ++i) {  // of 16 columns
      const int column = 64 * first + 16 * i;
      if (column >= Config::value_dim) continue;
      u32 d[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* two = out + column / 2 + 2 * j;
        d[j] = finished_pair<Config::bfloat16>(two[0], two[1], end[j % 2].factor);
        zero[j % 2] = add_zero_times<Config::bfloat16>(zero[j % 2], d[j]);
      }
      store_matrices((written ^ 32 * (i % 4)) + i / 4 * staged_bytes, d[0], d[1], d[2], d[3]);
    }
    __syncwarp();
    uint4 data[pieces];  // of 4 rows
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int row = 4 * (i % 4) + lane / 8;
      data[i] = load_16_bytes(staged + i / 4 * staged_bytes + row * block_row_bytes + (piece ^ row % 8) * 16);
    }
#pragma unroll
    for (int i = 0; i < pieces; ++i) {
      const int row = rows.first() + 4 * (i % 4) + lane / 8, column = 64 * (first + i / 4);
      store_16_bytes_if(
          row < live && column + 8 * piece < Config::value_dim,
          to + row / group * params.out.token_stride + row % group * params.out.head_stride + column,
          data[i]);
    }
  }
  __syncwarp();
  bool finite = true;
#pragma unroll
  for (int r = 0; r < 2; ++r) finite = finite && (rows.of(r, lane) >= live || (zero[r] & 0x7fff7fffu) == 0);
  return __all_sync(~0u, finite);
}

}  // namespace chorale::kernels
