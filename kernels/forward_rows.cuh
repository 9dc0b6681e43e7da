// What a consumer's thread holds of two rows: scores that become probabilities, the state of the softmax, and
// the total of the chunks that have ended. Fragments are wgmma.cuh's.
#pragma once

#include "forward_memory.cuh"
#include "softmax.cuh"

namespace chorale::kernels {

constexpr int score_count = Config::tile / 2;     // scores of a thread: two rows
constexpr int out_count = Config::value_dim / 2;  // outputs of a thread

// The two rows of a thread, of(0) and of(1), of its row block.
struct ThreadRows {
  int warpgroup, warp;  // the warp in its warpgroup: the same for all lanes, and the compiler knows
  __device__ explicit ThreadRows(int warpgroup)
      : warpgroup(warpgroup), warp(uniform(threadIdx.x % 128 / 32)) {}
  __device__ int first() const { return warpgroup * 64 + warp * 16; }  // of the warp's 16
  __device__ int of(int i, int lane) const { return first() + lane / 4 + 8 * i; }
};

// The largest score of one of a thread's two rows, over its own columns.
__device__ __forceinline__ float find_maximum(const float (&scores)[score_count], int r) {
  constexpr int chains = 4;  // side by side: one would wait for itself at every step
  float chain[chains];
#pragma unroll
  for (int i = 0; i < score_count / 4; ++i) {
    const float x = fmaxf(scores[4 * i + 2 * r], scores[4 * i + 2 * r + 1]);
    chain[i % chains] = i < chains ? x : fmaxf(chain[i % chains], x);
  }
  return fmaxf(fmaxf(chain[0], chain[1]), fmaxf(chain[2], chain[3]));
}

// The state of a thread's two rows.
struct Softmax {
  float reference[2], sum[2];  // the sum over this thread's columns

  __device__ __forceinline__ void reset() {
    reference[0] = reference[1] = -infinity;
    sum[0] = sum[1] = 0.f;
  }
  // Takes a tile in: scores become probabilities. True: the reference of one of these rows rises. `rescale`
  // is what the output is to be multiplied by. One row after the other, so that the second one's maximum is
  // found beside the first one's exponentials; `midway` is called between, with something that is known then.
  template <class Midway>
  __device__ __forceinline__ bool take(float (&scores)[score_count], float factor, float (&rescale)[2],
                                       Midway midway) {
    bool rises = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = find_maximum(scores, r);
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      const float before = reference[r];
      reference[r] = raised_reference(before, largest, factor);
      rescale[r] = rescale_factor(before, reference[r], factor);
      rises = rises || reference[r] != before;
      const float exponent = negative_exponent(reference[r], factor);
      float even, odd;
#pragma unroll
      for (int i = 0; i < score_count / 4; ++i) {
        float &x = scores[4 * i + 2 * r], &y = scores[4 * i + 2 * r + 1];
        x = probability(x, factor, exponent);
        y = probability(y, factor, exponent);
        even = i == 0 ? x : __fadd_rn(even, x);
        odd = i == 0 ? y : __fadd_rn(odd, y);
        if (r == 0 && i == score_count / 8 - 1) midway(even);
      }
      sum[r] = __fmaf_rn(sum[r], rescale[r], __fadd_rn(even, odd));
    }
    return rises;
  }
  // The sums of whole rows.
  __device__ __forceinline__ void add_quad() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = __fadd_rn(sum[r], __shfl_xor_sync(~0u, sum[r], 1));
      sum[r] = __fadd_rn(sum[r], __shfl_xor_sync(~0u, sum[r], 2));
    }
  }
};

__device__ __forceinline__ void pack(u32 (&p)[score_count / 2], const float (&scores)[score_count]) {
#pragma unroll
  for (int i = 0; i < score_count / 2; ++i) p[i] = pack<Config::bfloat16>(scores[2 * i], scores[2 * i + 1]);
}

__device__ __forceinline__ void multiply(float (&out)[out_count], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < out_count; ++i) out[i] = __fmul_rn(out[i], by[i / 2 % 2]);
}

// What was staged in a warp's part of the shared outputs has been read: there is room.
__device__ __forceinline__ void await_staging() {
  wait_for_stores_read();
  __syncwarp();
}

// The chunks of an item that have ended. What registers cannot hold beside scores and outputs lies where
// outputs are staged when the item ends: what a warp has there is its own.
class Total {
 public:
  // `memory`: of the warpgroup, ForwardMemory::out.
  __device__ __forceinline__ Total(unsigned char* memory, const ThreadRows& rows)
      : memory_(shared_address(memory) + rows.warp * (16 * block_row_bytes) + threadIdx.x % 32 * 16) {}
  // Takes a chunk in.
  __device__ __forceinline__ void add(const Softmax& chunk, const float (&out)[out_count], float factor) {
    if (any_) {
      merge_in(chunk, out, factor, [&](int i, float4 x) { put(i, x); });
      return;
    }
    await_staging();
    float w[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      w[r] = first_weight(chunk.reference[r]);
      state_.reference[r] = chunk.reference[r];
      state_.sum[r] = merge_first(chunk.sum[r], w[r]);
    }
#pragma unroll
    for (int i = 0; i < out_count; i += 4)
      put(i, float4{merge_first(out[i], w[0]), merge_first(out[i + 1], w[0]), merge_first(out[i + 2], w[1]),
                    merge_first(out[i + 3], w[1])});
    any_ = true;
  }
  // The last chunk has ended: `chunk` and `out` become all of them. Merged into nothing they are as they are.
  __device__ __forceinline__ void finish(Softmax& chunk, float (&out)[out_count], float factor) {
    if (!any_) return;
    merge_in(chunk, out, factor,
             [&](int i, float4 x) { out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w; });
    __syncwarp();  // all have read what outputs are staged over
    chunk = state_;
    any_ = false;
  }

 private:
  static constexpr int stored = out_count > 32 ? 32 : 0, kept = out_count - stored;  // of out_count

  // take(i, x): outputs i to i + 3 of total and chunk together.
  template <class Take>
  __device__ __forceinline__ void merge_in(const Softmax& chunk, const float (&out)[out_count], float factor,
                                           Take take) {
    MergeWeights w[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      w[r] = merge_weights(state_.reference[r], chunk.reference[r], factor);
      state_.reference[r] = w[r].maximum;
      state_.sum[r] = merge(state_.sum[r], chunk.sum[r], w[r]);
    }
#pragma unroll
    for (int i = 0; i < out_count; i += 4) {
      const float4 x = get(i);
      take(i, float4{merge(x.x, out[i], w[0]), merge(x.y, out[i + 1], w[0]), merge(x.z, out[i + 2], w[1]),
                     merge(x.w, out[i + 3], w[1])});
    }
  }
  __device__ __forceinline__ float4 get(int i) const {
    if (i < kept) return {kept_[i], kept_[i + 1], kept_[i + 2], kept_[i + 3]};
    return __builtin_bit_cast(float4, load_16_bytes(place_of(i)));
  }
  __device__ __forceinline__ void put(int i, float4 x) {
    if (i < kept)
      kept_[i] = x.x, kept_[i + 1] = x.y, kept_[i + 2] = x.z, kept_[i + 3] = x.w;
    else
      store_16_bytes(place_of(i), __builtin_bit_cast(uint4, x));
  }
  // A warp's rows are 2 KiB of each staged block: four times 16 bytes of every lane.
  __device__ __forceinline__ u32 place_of(int i) const {
    const int piece = (i - kept) / 4;
    return memory_ + piece / 4 * staged_bytes + piece % 4 * (32 * 16);
  }

  float kept_[kept];
  u32 memory_;
  Softmax state_;
  bool any_ = false;
};

}  // namespace chorale::kernels
