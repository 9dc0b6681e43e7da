// The end of a row block: outputs and log-sum-exps to memory.
#pragma once

#include "forward_rows.cuh"
#include "params.h"
#include "schedule.cuh"

namespace chorale::kernels {

// Where 8 columns of a row of a warpgroup lie in a staged block: spread over the banks.
__device__ __forceinline__ u32 place(int row, int piece) {
  return row * block_row_bytes + ((piece % 8) ^ (row % 8)) * 16;
}
// Divides, rounds and stores a warp's 16 rows, 64 columns at a time: through shared memory, so that pieces of
// 128 bytes leave whole. Every warp has its own rows there.
__device__ __forceinline__ void store(const float (&out)[out_count], const Softmax& state,
                                      const ForwardParams& params, const Item& item, const ThreadRows& rows,
                                      unsigned char* staging) {
  const auto is_real = [&](int row) { return row < Config::rows && row / Config::group < item.positions; };
  const auto head_of = [&](int row) { return item.kv_head * Config::group + row % Config::group; };
  const int lane = lane_now();
  RowEnd end[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = rows.of(r, lane);
    const float sink = Config::sinks && is_real(row) ? params.sinks[head_of(row)] : -infinity;
    end[r] = row_end(state.reference[r], state.sum[r], params.factor, sink);
    if (params.lse != nullptr && lane % 4 == 0 && is_real(row))
      params
          .lse[static_cast<long long>(item.q_row + row / Config::group) * (params.kv_heads * Config::group) +
               head_of(row)] = end[r].lse;
  }
  const int first = rows.first();
  u16* const to = static_cast<u16*>(params.out.data) + item.q_row * params.out.token_stride;
#pragma unroll
  for (int block = 0; block < value_blocks; ++block) {
    unsigned char* const part = staging + block % staged_blocks * (64 * block_row_bytes);
    if (block >= staged_blocks) __syncwarp();  // all have read what was there
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // 16 columns
      if (64 * block + 16 * i >= Config::value_dim) continue;
      u32 d[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* two = out + 32 * block + 8 * i + 2 * j;
        const float x = finished(two[0], end[j % 2].factor), y = finished(two[1], end[j % 2].factor);
        d[j] = Config::bfloat16 ? pack_bfloat16(x, y) : pack_float16(x, y);
      }
      store_matrices(shared_address(part) + place((first + lane % 16) % 64, 2 * i + lane / 16), d[0], d[1],
                     d[2], d[3]);
    }
    __syncwarp();
    const int piece = lane % 8;  // of 8 columns: 8 lanes a row
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + 4 * i + lane / 8;
      const uint4 data = *reinterpret_cast<const uint4*>(part + place(row % 64, piece));
      if (is_real(row) && 64 * block + 8 * piece < Config::value_dim)
        store_16_bytes(to + row / Config::group * params.out.token_stride +
                           head_of(row) * params.out.head_stride + 64 * block + 8 * piece,
                       data);
    }
  }
  __syncwarp();
}

}  // namespace chorale::kernels
