// The online softmax and the merge of chunks: every operation whose rounding is part of the order
// (docs/numerics.md, "Forward on Hopper"). Kernels differ in who holds what, never in these.
//
// `factor`, above 0, turns a score into a power of two. Probabilities are relative to a row's reference: a
// score that it has seen, -infinity where it has seen none.
#pragma once

#include "ptx.cuh"

namespace chorale::kernels {

constexpr float infinity = __builtin_bit_cast(float, 0x7f800000);

// The reference after a tile whose largest score is `tile_maximum`: that score where it would have a
// probability above 2^8, or is the first. So no probability passes 2^8, and after a chunk's first tile hardly
// any rescales. (Of the differences that decide, the first score's is infinity, and where there is still none
// NaN.)
__device__ __forceinline__ float raised_reference(float reference, float tile_maximum, float factor) {
  return __fmul_rn(tile_maximum - reference, factor) > 8.f ? tile_maximum : reference;
}

// What exponents are taken against: 0 where there is no reference, so that -infinity - it is no NaN.
__device__ __forceinline__ float exponent_base(float reference) {
  return reference == -infinity ? 0.f : reference;
}
// -(R * factor), for probability().
__device__ __forceinline__ float negative_exponent(float reference, float factor) {
  return -__fmul_rn(exponent_base(reference), factor);
}
__device__ __forceinline__ float probability(float score, float factor, float negative_exponent) {
  return exp2_approx(__fmaf_rn(score, factor, negative_exponent));
}
// What a state's sum and output are multiplied by when its reference rises: exactly 1 where it does not (or
// 0, of a state that has seen no key).
__device__ __forceinline__ float rescale_factor(float old_reference, float new_reference, float factor) {
  return exp2_approx(__fmul_rn(old_reference - exponent_base(new_reference), factor));
}

// A row's state: reference R, sum l of probabilities, and the output O (elsewhere). merge() is
//     R = max(R1, R2)   l = l1 a1 + l2 a2   O = O1 a1 + O2 a2   a_i = 2^((R_i - R) factor)
// An empty state's weight is -0: adding -0 times 0 changes no number, not even the sign of a zero.
struct MergeWeights {
  float maximum, total, chunk;  // the larger reference; weights of the two states
};
__device__ __forceinline__ MergeWeights merge_weights(float total_reference, float chunk_reference,
                                                      float factor) {
  const float maximum = fmaxf(total_reference, chunk_reference);
  return {maximum, total_reference == -infinity ? -0.f : rescale_factor(total_reference, maximum, factor),
          chunk_reference == -infinity ? -0.f : rescale_factor(chunk_reference, maximum, factor)};
}
__device__ __forceinline__ float merge(float total, float chunk, const MergeWeights& weights) {
  return __fmaf_rn(chunk, weights.chunk, __fmul_rn(total, weights.total));
}
// What merging into nothing comes to, merge() of a total of 0 without a reference: the same bits.
__device__ __forceinline__ float first_weight(float chunk_reference) {
  return chunk_reference == -infinity ? -0.f : 1.f;
}
__device__ __forceinline__ float merge_first(float chunk, float weight) {
  return __fmaf_rn(chunk, weight, -0.f);
}

// The end of a row: what the output is multiplied by, and the natural log of the sum of exponentials. `sink`
// is a natural score, -infinity without one.
struct RowEnd {
  float factor, lse;
};
__device__ __forceinline__ RowEnd row_end(float reference, float sum, float factor, float sink) {
  constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
  const float power = __fmul_rn(exponent_base(reference), factor);  // of two
  if (sink == -infinity) {
    // Else its sum is about 1 or more, or NaN: scores of NaN leave no reference either.
    const bool empty = reference == -infinity && sum == 0.f;
    return {empty ? 0.f : reciprocal_of_normal(sum),
            empty ? -infinity : __fmul_rn(power + log2_approx(sum), ln_2)};
  }
  const float sink_power = __fmul_rn(sink, log2_e);
  const float largest = reference == -infinity ? sink_power : fmaxf(power, sink_power);
  const float weight = reference == -infinity ? 0.f : exp2_approx(power - largest);
  const float all = __fmaf_rn(sum, weight, exp2_approx(sink_power - largest));
  return {__fmul_rn(weight, reciprocal_of_normal(all)), __fmul_rn(largest + log2_approx(all), ln_2)};
}

// An output at its row's end. A row that has seen no key gives +0: its zeros may have either sign by now.
__device__ __forceinline__ float finished(float out, float factor) {
  return factor == 0.f ? 0.f : __fmul_rn(out, factor);
}

}  // namespace chorale::kernels
