// Cases of the conformance suite: what is computed, on which values, lying how in memory.
//
// A value depends only on its coordinate: on the case's seed, the sequence's content number, and the
// position, head and column. So the same token has the same query, key and value in every batch, layout and
// cut that it appears in, and a failure is found again from its seed and coordinate alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chorale/batch.h"
#include "chorale/implementation.h"
#include "chorale/problem.h"

namespace chorale::conformance {

struct Sequence {
  std::int32_t queries = 0;  // the last of its positions
  std::int32_t keys = 0;
  std::uint64_t content = 0;  // which values: equal numbers, equal tokens
};

enum class Fill {
  normal,        // zero mean, unit variance
  zero_queries,  // every visible key weighs the same
  unit_values,   // V = 1, so O = 1
  dominant_key,  // one key per head outweighs all others by far
  large_scores,  // beyond the range of exp
  nan_inside,   // NaN in one key, in one value, Inf in another: what sees them is NaN or Inf, nothing else is
  nan_queries,  // NaN in one query and in one gradient of an output: so is what comes of them, nothing else
                // is
};

// How the elements of a tensor lie in memory.
enum class Arrangement {
  contiguous,
  heads_first,      // [heads, rows, columns]; in a pool [pages, heads, slots, columns]
  padded,           // rows an odd number of elements apart
  columns_first,    // the last dimension has the largest stride; inputs only
  broadcast_heads,  // stride 0 over heads: all of them hold the same values; inputs only
  misaligned,       // contiguous, but only aligned to one element
};

struct Case {
  std::string feature;  // for messages
  Problem problem = {};
  std::vector<Sequence> sequences = {};
  std::vector<Table> tables = {};  // bound by the batch
  int page_size = 0;               // 0: packed
  std::uint64_t page_order = 1;    // seed of the order of pages in the pool
  bool shared_pages = false;       // later sequences use the first one's full pages, as after a fork
  Fill fill = Fill::normal;
  Arrangement inputs = Arrangement::contiguous;
  Arrangement outputs = Arrangement::contiguous;
  std::uint64_t seed = 1;

  std::string describe() const;
};

// A view and the memory it looks into, which may be more than the view's elements.
struct Stored {
  Tensor memory;  // one dimension
  TensorView view;
};
// `background` is what lies where the view does not reach.
Stored store(DType dtype, std::span<const std::int64_t> shape, Arrangement arrangement, float background);

// What lies in slots, pages and keys that nothing may depend on.
enum class Background { zeros, poison };

// A case's tensors. Outputs start poisoned, so that what is not written shows.
struct Data {
  Batch batch;
  Stored q, k, v, k_scale, v_scale, sinks, grad_out;
  Stored out, lse, grad_q, grad_k, grad_v, grad_sinks;

  ForwardTensors forward() const;
  BackwardTensors backward() const;  // takes out and lse as forward left them
};
Batch batch_of(const Case& test);  // of its data
Data make_data(const Case& test, Background background = Background::poison);

}  // namespace chorale::conformance
