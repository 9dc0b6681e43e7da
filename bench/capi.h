// What bench/chorale_c.py hands over to the C functions.
#pragma once

#include <cstdint>

#include "chorale/chorale.h"

// A problem and a batch. bench/chorale_c.py declares the same structure.
struct CaseRequest {
  int query_heads, kv_heads, head_dim;
  const char *dtype, *mask, *score;  // score: "" for none
  const char* implementation;
  const char* device;
  int threads;  // of the processor
  int chunk;    // on a GPU, keys of a chunk in the place of the implementation's own, with other bits; 0: its
                // own
  const std::int32_t* documents;  // the table `document`, or null
  std::int64_t document_count;
  const float* slopes;  // the table `slopes`, or null
  std::int64_t slope_count;
  int sequences;
  const std::int32_t *q_lens, *kv_lens;
  int page_size;                    // 0: keys packed as kv_lens say
  std::int64_t pages;               // of the pool
  const std::int32_t* block_table;  // [sequences, table_row]
  std::int64_t table_row;
};

namespace chorale::bench {

// Notes a failure for chorale_error(); whether there was one.
bool failed(const Status& status);

Result<Problem> make_problem(const CaseRequest& request);
Batch make_batch(const CaseRequest& request);

// One problem with one batch.
struct Case {
  Problem problem;
  std::shared_ptr<const Plan> plan;
  Attention attention;
  std::vector<std::int64_t> key_shape;  // less its last dimension
};

// The plan of a case whose `chunk` is not the implementation's own.
Result<std::shared_ptr<const Plan>> plan_with_chunk(const Problem& problem, const Batch& batch,
                                                    const Device& device, int chunk);

}  // namespace chorale::bench
