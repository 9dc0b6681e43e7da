// KvCache: keys and values of running sequences, in pages.
//
// Not thread-safe: one scheduler owns it. Attention only reads the pool through the views, and may do so from
// several threads between two changes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "chorale/batch.h"
#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// Of tokens, from the hash of what comes before them.
using PrefixHash = std::uint64_t (*)(std::uint64_t before, std::span<const std::int32_t> tokens);

struct KvCacheConfig {
  int layers = 1;
  int kv_heads = 0;
  int head_dim = 0;        // of keys
  int value_head_dim = 0;  // 0: as head_dim
  DType dtype =
      DType::bfloat16;     // float8_e4m3: quantised by `store`, with the scales below (src/kv/quantise.h)
  int page_size = 16;      // tokens; a power of two from 1 to 256
  std::int64_t pages = 0;  // in the pool, shared by all layers: page p of every layer belongs together
  std::vector<float> key_scales{},
      value_scales{};                // [layers, kv_heads], finite and above 0; exactly if float8_e4m3
  PrefixHash prefix_hash = nullptr;  // null: the cache's own. Any function is right; a good one is fast
  Status validate() const;
};

// A sequence whose keys and values lie outside the pool, in host memory of their own. It may outlive the
// cache, which alone can take it back in.
class SwappedSequence {
 public:
  SwappedSequence(SwappedSequence&&) noexcept;
  SwappedSequence& operator=(SwappedSequence&&) noexcept;
  ~SwappedSequence();

  std::int64_t length() const;  // tokens
  std::size_t bytes() const;

 private:
  friend class KvCache;
  struct State;
  explicit SwappedSequence(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class KvCache {
 public:
  using SequenceId = std::int64_t;  // never used twice in one cache

  // Allocates the whole pool: layers * pages * page_size * kv_heads * (head_dim + value_head_dim) elements.
  static Result<KvCache> create(const KvCacheConfig& config);
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  const KvCacheConfig& config() const;
  TensorView keys(int layer) const;        // [pages, page_size, kv_heads, head_dim]
  TensorView values(int layer) const;      // [pages, page_size, kv_heads, value_head_dim]
  TensorView key_scales(int layer) const;  // [kv_heads] float32; empty unless the pages hold float8_e4m3
  TensorView value_scales(int layer) const;

  // An empty sequence. `salt` stands for all that keys and values depend on besides the tokens: the model's
  // weights, an adapter. Sequences share prefixes only with those of the same salt.
  SequenceId add(std::uint64_t salt = 0);
  // Makes room for `tokens` more positions and returns their slots (page * page_size + offset), one per
  // token. A partly filled last page that is shared is copied first (copy-on-write), in every layer. All or
  // nothing: Code::resource_exhausted names the pages needed and free, and leaves everything as it was.
  Result<std::vector<std::int64_t>> append(SequenceId sequence, std::int64_t tokens);
  // How many free pages append would take.
  Result<std::int64_t> pages_for(SequenceId sequence, std::int64_t tokens) const;
  // A new sequence with the same tokens; all pages are shared until one side writes.
  Result<SequenceId> fork(SequenceId sequence);
  // Drops positions from `length` on (a rejected speculation); pages no longer used are freed.
  Status truncate(SequenceId sequence, std::int64_t length);
  // Gives the pages back that nobody else shares. Freeing an unknown or freed sequence is an error.
  Status free(SequenceId sequence);

  // Prefix reuse. `publish` lets later sequences find this one's full pages by the tokens in them;
  // `add_with_prefix` finds them, compares token by token, and shares them. A page whose last owner lets go
  // stays findable until the pool needs it: pages without content go first, then the one that was let go
  // first.
  struct PrefixMatch {
    SequenceId sequence = 0;
    std::int64_t tokens = 0;  // that it already has: full pages
  };
  // A new sequence with as much of `tokens` as is found. At least the last token is left to compute: its
  // logits are what somebody waits for.
  PrefixMatch add_with_prefix(std::span<const std::int32_t> tokens, std::uint64_t salt = 0);
  // `tokens` are the sequence's first ones; their keys and values are stored in every layer (a published page
  // refuses `store`). Only full pages count. Where another page with the same tokens is known, the sequence
  // takes that one and gives its own back, so its block table may change. May be called again as the sequence
  // grows.
  Status publish(SequenceId sequence, std::span<const std::int32_t> tokens);
  // For when the weights change: no page can be found any more, and what living sequences hold is never
  // published.
  void forget_prefixes();

  // Copies a sequence to host memory, and then frees it. Fails, with nothing changed, if there is no memory.
  Result<SwappedSequence> swap_out(SequenceId sequence);
  // A new sequence with the same keys and values, bit for bit. Published pages that are still there are
  // shared again, the others take a page each: at most ceil(length / page_size). Code::resource_exhausted,
  // with nothing changed, if there are not so many.
  Result<SequenceId> swap_in(const SwappedSequence& swapped);

  Result<std::int64_t> length(SequenceId sequence) const;  // tokens
  Result<std::vector<std::int32_t>> block_table(SequenceId sequence) const;
  std::int64_t free_pages() const;    // that append can take, cached ones included
  std::int64_t cached_pages() const;  // free, but add_with_prefix can still find them
  std::int64_t used_pages() const;  // of sequences; free_pages() + used_pages() = config().pages at all times
  int references(std::int32_t page) const;

  // Writes keys [tokens, kv_heads, head_dim] and values to slots that append returned: bits as they are, or
  // codes of any type of computation in a float8_e4m3 cache. Checks types, shapes, and that each slot lies in
  // the pool and in an unpublished page with exactly one owner; writes nothing if one does not.
  Status store(int layer, std::span<const std::int64_t> slots, const TensorView& k, const TensorView& v);

  // The Batch for attention over these sequences: the last q_lens[i] tokens of each are the queries.
  Result<Batch> batch(std::span<const SequenceId> sequences, std::span<const std::int32_t> q_lens) const;

 private:
  struct State;
  explicit KvCache(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace chorale
