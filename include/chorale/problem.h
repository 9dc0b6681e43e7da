// Problem: what one layer's attention computes. It knows nothing of hardware, batch or role.
#pragma once

#include <optional>
#include <string>

#include "chorale/mask.h"
#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// For query row i at logical position q of sequence b and query head h (key head h / group_size()):
//     s_k   = score(scale * dot(Q_i, K_k))        for every key k with mask(b, h, q, k)
//     LSE_i = ln(sum_k exp(s_k) [+ exp(sink_h)])   natural logarithm
//     O_i   = sum_k exp(s_k - LSE_i) V_k
// A row that sees no key has O = 0 and LSE = -inf (LSE = sink_h with sinks). Values of keys that the mask
// hides, or beyond the sequence's end, have no effect whatever they hold. (Vaswani et al. 2017; grouped
// queries: Ainslie et al. 2023; sinks: Xiao et al. 2024 as a learned extra logit.)
struct Problem {
  static constexpr int max_head_dim = 256;

  int query_heads = 0;  // a multiple of kv_heads
  int kv_heads = 0;
  int head_dim = 0;               // of queries and keys, 1 to 256
  int value_head_dim = 0;         // of values and outputs, 1 to 256; 0: as head_dim
  DType dtype = DType::bfloat16;  // of q, k, v and their gradients; sums are float32
  // What k and v are kept in; none: dtype. The alternative is float8_e4m3 with a scale for each KV head: an
  // element then stands for float(code) * scale, rounded to dtype, and gradients are those of that value.
  std::optional<DType> kv_dtype{};
  float scale = 0;  // 0: 1 / sqrt(head_dim)
  Mask mask{};
  Score score{};
  bool sinks = false;        // one learned logit per query head takes part in the denominator
  int first_query_head = 0;  // what `h` counts from: the global index of a shard's first head

  int group_size() const { return query_heads / kv_heads; }
  int value_dim() const { return value_head_dim == 0 ? head_dim : value_head_dim; }
  DType kv_dtype_or_default() const { return kv_dtype.value_or(dtype); }
  bool has_kv_scales() const { return kv_dtype_or_default() == DType::float8_e4m3; }
  float scale_or_default() const;
  Status validate() const;       // names the field, the value and the limit
  std::string describe() const;  // one line
};

}  // namespace chorale
