// KvCache: keys and values of running sequences, in pages.
//
// Not thread-safe: one scheduler owns it. Attention only reads the pool through the views, and may do so from several
// threads between two changes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "chorale/batch.h"
#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

struct KvCacheConfig {
  int layers = 1;
  int kv_heads = 0;
  int head_dim = 0;                  // of keys
  int value_head_dim = 0;            // 0: as head_dim
  DType dtype = DType::bfloat16;
  int page_size = 16;                // tokens; a power of two from 1 to 256
  std::int64_t pages = 0;            // in the pool, shared by all layers: page p of every layer belongs together
  Status validate() const;
};

class KvCache {
 public:
  using SequenceId = std::int64_t;   // never used twice in one cache

  // Allocates the whole pool: layers * pages * page_size * kv_heads * (head_dim + value_head_dim) elements.
  static Result<KvCache> create(const KvCacheConfig& config);
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  const KvCacheConfig& config() const;
  TensorView keys(int layer) const;    // [pages, page_size, kv_heads, head_dim]
  TensorView values(int layer) const;  // [pages, page_size, kv_heads, value_head_dim]

  SequenceId add();                                       // an empty sequence
  // Makes room for `tokens` more positions and returns their slots (page * page_size + offset), one per token. A
  // partly filled last page that is shared is copied first (copy-on-write), in every layer. All or nothing:
  // Code::resource_exhausted names the pages needed and free, and leaves everything as it was.
  Result<std::vector<std::int64_t>> append(SequenceId sequence, std::int64_t tokens);
  // How many free pages append would take.
  Result<std::int64_t> pages_for(SequenceId sequence, std::int64_t tokens) const;
  // A new sequence with the same tokens; all pages are shared until one side writes.
  Result<SequenceId> fork(SequenceId sequence);
  // Drops positions from `length` on (a rejected speculation); pages no longer used are freed.
  Status truncate(SequenceId sequence, std::int64_t length);
  // Gives the pages back that nobody else shares. Freeing an unknown or freed sequence is an error.
  Status free(SequenceId sequence);

  Result<std::int64_t> length(SequenceId sequence) const;                 // tokens
  Result<std::vector<std::int32_t>> block_table(SequenceId sequence) const;
  std::int64_t free_pages() const;
  std::int64_t used_pages() const;     // free_pages() + used_pages() = config().pages at all times
  int references(std::int32_t page) const;

  // Writes keys [tokens, kv_heads, head_dim] and values to slots that append returned. Checks types, shapes, and that
  // each slot lies in the pool and in a page with exactly one owner; writes nothing if one does not.
  Status store(int layer, std::span<const std::int64_t> slots, const TensorView& k, const TensorView& v);

  // The Batch for attention over these sequences: the last q_lens[i] tokens of each are the queries.
  Result<Batch> batch(std::span<const SequenceId> sequences, std::span<const std::int32_t> q_lens) const;

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace chorale
