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
  for (int i = 0; i < score_count / 2; ++i)
    p[i] = Config::bfloat16 ? pack_bfloat16(scores[2 * i], scores[2 * i + 1])
                            : pack_float16(scores[2 * i], scores[2 * i + 1]);
}

__device__ __forceinline__ void multiply(float (&out)[out_count], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < out_count; ++i) out[i] = __fmul_rn(out[i], by[i / 2 % 2]);
}

// The chunks of an item that have ended.
struct Total {
  float out[out_count];
  Softmax state;
  bool any;

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (float& x : out) x = 0.f;
    state.reset();
    any = false;
  }
  // Takes a chunk's state in; outputs follow by the weights.
  __device__ __forceinline__ void merge_state(const Softmax& chunk, float factor,
                                              MergeWeights (&weights)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weights[r] = merge_weights(state.reference[r], chunk.reference[r], factor);
      state.reference[r] = weights[r].maximum;
      state.sum[r] = merge(state.sum[r], chunk.sum[r], weights[r]);
    }
  }
};

}  // namespace chorale::kernels
