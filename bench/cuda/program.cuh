// Stands for what the host emits (kernels/params.h): causal within a window, and ALiBi.
#pragma once

#include "params.h"

#ifndef DECODE_WINDOW
#define DECODE_WINDOW (1 << 30)
#endif

namespace chorale::kernels {

struct KeyValues {
  static constexpr int count = 0;
  int v[1];
};
using RowValues = KeyValues;
__device__ __forceinline__ RowValues program_rows(const TableView*, int, int, int) { return {}; }
__device__ __forceinline__ KeyValues program_keys(const TableView*, int, int) { return {}; }
__device__ __forceinline__ bool program_visible(const TableView*, int, int, int q, int k, const RowValues&,
                                                const KeyValues&) {
  return k <= q && q - k < DECODE_WINDOW;
}
__device__ __forceinline__ float program_score(const TableView*, float score, float scale, int, int h, int q,
                                               int k, const RowValues&, const KeyValues&) {
  return __fmaf_rn(-0.001f * float(h + 1), float(q - k), __fmul_rn(score, scale));
}
__device__ __forceinline__ int program_coverage(const TableView*, int, int, int, int q_first, int q_last,
                                                int k_first, int k_last) {
  if (k_first > q_last || q_first - k_last >= DECODE_WINDOW) return 0;
  return k_last <= q_first && q_last - k_first < DECODE_WINDOW ? 2 : 1;
}

}  // namespace chorale::kernels
