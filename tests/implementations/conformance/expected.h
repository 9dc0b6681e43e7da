// What a case must give: values in float64, and how far from them a row may be. docs/conformance.md derives
// the bounds.
#pragma once

#include <cstdint>
#include <vector>

#include "implementations/conformance/case.h"
#include "implementations/eager/softmax_row.h"

namespace chorale::conformance {

// Rows of values, each with a bound of the 2-norm of its error.
struct Bounded {
  eager::Matrix values;       // one row per row and head of the tensor
  std::vector<double> bound;  // [values.rows]

  Bounded() = default;
  Bounded(std::int64_t rows, std::int64_t columns)
      : values(eager::Matrix::zeros(rows, columns)), bound(static_cast<std::size_t>(rows)) {}
};

struct Expected {
  Bounded out, lse;        // [total_q * query_heads]
  Bounded grad_q;          // [total_q * query_heads]
  Bounded grad_k, grad_v;  // [total_k * kv_heads]
  Bounded grad_sinks;      // [query_heads]
};
// One head of a sequence's keys or values in logical order: [kv_len, columns].
// `scales` count where the problem has them.
eager::Matrix read_keys(const Problem& problem, const Batch& batch, int sequence, const TensorView& keys,
                        const TensorView& scales, int kv_head);

// From the stored inputs. `problem` with its tables bound. weights_rounded: the implementation rounds
// probabilities to 16 bits before it multiplies them with values.
Expected expect(const Problem& problem, const Data& data, bool weights_rounded = false);

}  // namespace chorale::conformance
