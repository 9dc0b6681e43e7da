// Batch: one step's sequences. Lengths and page tables are host memory; the batch owns its copies.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chorale/mask.h"
#include "chorale/status.h"

namespace chorale {

// Queries are always packed: sequence b owns rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of q, out and lse.
// Its keys are either packed the same way, or lie in pages: position j of sequence b is slot j % page_size of
// page block_table[b][j / page_size]. Only logical positions reach masks. Pages may come in any order, be
// shared between sequences, and entries past ceil(kv_len / page_size) are never read.
struct Batch {
  std::vector<std::int32_t> cu_seqlens_q;  // [sequences + 1], from 0, ascending
  std::vector<std::int32_t> cu_seqlens_k;  // [sequences + 1] for packed keys; empty for paged keys

  std::vector<std::int32_t> kv_lens;      // [sequences] for paged keys: tokens of each sequence in the cache
  std::vector<std::int32_t> block_table;  // [sequences, block_table_stride] page numbers, row-major
  std::int64_t block_table_stride = 0;    // pages per row
  int page_size = 0;                      // tokens; a power of two from 1 to 256; 0 for packed keys

  std::vector<Table> tables;  // this step's values for tables of the same name in the mask and score

  // Keys packed as the queries are (self-attention over whole sequences).
  static Batch packed(std::vector<std::int32_t> cu_seqlens);
  // Keys packed with lengths of their own (cross-attention, or a suffix of queries over all keys).
  static Batch packed(std::vector<std::int32_t> cu_seqlens_q, std::vector<std::int32_t> cu_seqlens_k);
  // vLLM's and FlashAttention's form. Each table row must hold ceil(kv_len / page_size) pages.
  static Result<Batch> paged(std::vector<std::int32_t> cu_seqlens_q, std::vector<std::int32_t> kv_lens,
                             int page_size, std::span<const std::vector<std::int32_t>> block_tables);
  // FlashInfer's form: sequence b owns pages indices[indptr[b] : indptr[b + 1]], the last of them filled with
  // last_page_len[b] tokens (1 to page_size; a sequence with no page must say 0).
  static Result<Batch> paged_from_indptr(std::vector<std::int32_t> qo_indptr,
                                         std::span<const std::int32_t> kv_indptr,
                                         std::span<const std::int32_t> kv_indices,
                                         std::span<const std::int32_t> kv_last_page_len, int page_size);

  bool is_paged() const { return page_size != 0; }
  int sequences() const { return cu_seqlens_q.empty() ? 0 : static_cast<int>(cu_seqlens_q.size()) - 1; }
  std::int32_t total_q() const { return cu_seqlens_q.empty() ? 0 : cu_seqlens_q.back(); }
  // Key tokens over all sequences: rows of packed k and v, and of grad_k and grad_v in either layout.
  std::int64_t total_k() const;
  std::int32_t q_len(int sequence) const { return cu_seqlens_q[sequence + 1] - cu_seqlens_q[sequence]; }
  std::int32_t kv_len(int sequence) const {
    return is_paged() ? kv_lens[sequence] : cu_seqlens_k[sequence + 1] - cu_seqlens_k[sequence];
  }
  // Everything that does not need the tensors: sizes, order, page counts. Page numbers are checked against
  // the pool by forward and backward, where the pool is known.
  Status validate() const;
};

}  // namespace chorale
