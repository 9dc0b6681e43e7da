// The work list of one batch.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "chorale/implementation.h"
#include "implementations/cpu/mutants.h"
#include "implementations/cpu/order.h"
#include "implementations/cpu/visibility.h"

namespace chorale::tiled {

// Consecutive query rows of one sequence with all query heads of one KV head: they share every key tile. Row
// r of the block is query row first + r / group_size under head kv_head * group_size + r % group_size.
struct QueryBlock {
  int sequence = 0;
  int kv_head = 0;
  std::int64_t index = 0;      // of the blocks of its sequence and head
  std::int64_t first = 0;      // query row within the sequence
  std::int64_t positions = 0;  // query rows
};

class TiledPlan : public Plan {
 public:
  TiledPlan(std::string_view implementation, Problem problem, Batch batch, Arithmetic arithmetic, int threads,
            Mutant mutant);

  const std::vector<QueryBlock>& blocks() const {
    return blocks_;
  }  // of all sequences and heads, longest first
  // The blocks of one sequence and head, in ascending order of their rows.
  std::int64_t block_count(int sequence) const {
    return (batch().q_len(sequence) + positions_ - 1) / positions_;
  }
  QueryBlock block(int sequence, int kv_head, std::int64_t index) const;
  std::int64_t most_rows() const { return most_rows_; }  // of any block
  std::int64_t most_rows_padded() const { return (most_rows_ + 31) / 32 * 32; }
  Arithmetic arithmetic() const { return arithmetic_; }
  int threads() const { return threads_; }  // at least 1
  Mutant mutant() const { return mutant_; }

  std::int64_t rows(const QueryBlock& block) const { return block.positions * problem().group_size(); }
  // Logical position of a query row: the last query stands at the last key.
  std::int64_t position(int sequence, std::int64_t query) const {
    return batch().kv_len(sequence) - batch().q_len(sequence) + query;
  }
  // All rows of a sequence under one KV head, numbered as a block's are.
  std::int64_t sequence_rows(int sequence) const {
    return static_cast<std::int64_t>(batch().q_len(sequence)) * problem().group_size();
  }
  std::int64_t query_of_row(int sequence, std::int64_t row) const {
    return batch().cu_seqlens_q[sequence] + row / problem().group_size();
  }
  std::int64_t head_of_row(int kv_head, std::int64_t row) const {
    return static_cast<std::int64_t>(kv_head) * problem().group_size() + row % problem().group_size();
  }
  std::int64_t strips(int sequence) const { return blocks_of(sequence_rows(sequence), Visibility::rows); }
  static std::int64_t blocks_of(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }
  const Visibility& visibility() const { return visibility_; }  // of sequences of more than few_rows rows
  std::int64_t keys(int sequence) const;
  // exp(score) = exp2(value * log2_factor()), natural score = value * natural_factor(), for a product q . k
  // or what a score program made of scale() * (q . k).
  float scale() const { return scale_; }
  float natural_factor() const { return problem().score.is_identity() ? scale_ : 1.0f; }
  float log2_factor() const { return natural_factor() * log2_e; }
  std::int64_t chunks(int sequence) const { return (keys(sequence) + chunk_keys - 1) / chunk_keys; }
  // Row r of a block: the row in the packed tensors, and its query head.
  std::int64_t query(const QueryBlock& block, std::int64_t r) const {
    return batch().cu_seqlens_q[block.sequence] + block.first + r / problem().group_size();
  }
  std::int64_t head(const QueryBlock& block, std::int64_t r) const {
    return static_cast<std::int64_t>(block.kv_head) * problem().group_size() + r % problem().group_size();
  }

 private:
  std::int64_t positions_;  // of a full block
  std::int64_t most_rows_ = 0;
  std::vector<QueryBlock> blocks_;
  Arithmetic arithmetic_;
  int threads_;
  Mutant mutant_;
  float scale_;
  Visibility visibility_;
};

}  // namespace chorale::tiled
