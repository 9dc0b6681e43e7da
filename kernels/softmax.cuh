// The online softmax and the merge of chunks: every operation whose rounding is part of the order
// (docs/numerics.md, "Forward on Hopper"). Kernels differ in who holds what, never in these.
//
// `factor` turns a score into a power of two. Where a row has seen no key its maximum is -infinity.
#pragma once

#include "ptx.cuh"

namespace chorale::kernels {

constexpr float infinity = __builtin_bit_cast(float, 0x7f800000);

// What exponents are taken against: the maximum, or 0 where there is none, so that -infinity - it is no NaN.
__device__ __forceinline__ float reference(float maximum) { return maximum == -infinity ? 0.f : maximum; }

// -(m * factor), for probability().
__device__ __forceinline__ float negative_exponent(float maximum, float factor) {
  return -__fmul_rn(reference(maximum), factor);
}
__device__ __forceinline__ float probability(float score, float factor, float negative_exponent) {
  return exp2_approx(__fmaf_rn(score, factor, negative_exponent));
}
// What a state's sum and output are multiplied by when its maximum rises: exactly 1 where it does not.
__device__ __forceinline__ float rescale_factor(float old_maximum, float new_maximum, float factor) {
  return exp2_approx(__fmul_rn(old_maximum - reference(new_maximum), factor));
}

// A row's state: maximum m, sum l of probabilities, and the output O (elsewhere). merge() is
//     m = max(m1, m2)   l = l1 a1 + l2 a2   O = O1 a1 + O2 a2   a_i = 2^((m_i - m) factor)
// An empty state's weight is -0: adding -0 times 0 changes no number, not even the sign of a zero.
struct MergeWeights {
  float maximum, total, chunk;
};
__device__ __forceinline__ MergeWeights merge_weights(float total_maximum, float chunk_maximum,
                                                      float factor) {
  const float maximum = fmaxf(total_maximum, chunk_maximum);
  return {maximum, total_maximum == -infinity ? -0.f : rescale_factor(total_maximum, maximum, factor),
          chunk_maximum == -infinity ? -0.f : rescale_factor(chunk_maximum, maximum, factor)};
}
__device__ __forceinline__ float merge(float total, float chunk, const MergeWeights& weights) {
  return __fmaf_rn(chunk, weights.chunk, __fmul_rn(total, weights.total));
}

// The end of a row: what the output is multiplied by, and the natural log of the sum of exponentials. `sink`
// is a natural score, -infinity without one.
struct RowEnd {
  float factor, lse;
};
__device__ __forceinline__ RowEnd row_end(float maximum, float sum, float factor, float sink) {
  constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
  const float power = __fmul_rn(reference(maximum), factor);  // of two
  if (sink == -infinity) {
    if (maximum == -infinity) return {0.f, -infinity};
    return {__frcp_rn(sum), __fmul_rn(power + log2_approx(sum), ln_2)};
  }
  const float sink_power = __fmul_rn(sink, log2_e);
  const float largest = maximum == -infinity ? sink_power : fmaxf(power, sink_power);
  const float weight = maximum == -infinity ? 0.f : exp2_approx(power - largest);
  const float all = __fmaf_rn(sum, weight, exp2_approx(sink_power - largest));
  return {__fmul_rn(weight, __frcp_rn(all)), __fmul_rn(largest + log2_approx(all), ln_2)};
}

// An output at its row's end. A row that has seen no key gives +0: its zeros may have either sign by now.
__device__ __forceinline__ float finished(float out, float factor) {
  return factor == 0.f ? 0.f : __fmul_rn(out, factor);
}

}  // namespace chorale::kernels
