// What a KvCache is made of: the sequences' books, kept by its functions in kv_cache.cpp, prefix.cpp and
// swap.cpp.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "chorale/kv_cache.h"
#include "kv/page_memory.h"
#include "kv/page_pool.h"
#include "kv/prefix_index.h"

namespace chorale {

struct Sequence {
  std::uint64_t salt = 0;
  std::int64_t epoch = 0;           // of the cache when the sequence began: what is older is never published
  std::vector<std::int32_t> pages;  // ceil(length / page_size)
  std::int64_t length = 0;          // tokens
};

// What an append takes from the pool.
struct Growth {
  std::int64_t pages = 0;         // free pages needed, the copy included
  bool copies_last_page = false;  // it is partly filled and another sequence holds it too
};

struct KvCache::State {
  State(const KvCacheConfig& c, PageMemory m)
      : config(c), memory(std::move(m)), pool(c.pages), prefixes(c.prefix_hash) {}

  KvCacheConfig config;
  PageMemory memory;
  PagePool pool;
  PrefixIndex prefixes;
  std::unordered_map<SequenceId, Sequence> sequences;
  SequenceId next_id = 0;
  std::int64_t epoch = 0;  // forget_prefixes begins another
  const std::shared_ptr<const int> identity = std::make_shared<const int>(0);  // by its address

  Result<Sequence*> find(SequenceId id);
  SequenceId insert(Sequence sequence);
  Result<Growth> growth(const Sequence& sequence, std::int64_t tokens) const;
  // A page for one sequence, that nobody can find. The caller has seen to it that there is a free one.
  std::int32_t take_page();
  void release_page(std::int32_t page) { pool.release(page, prefixes.contains(page)); }
  // What the page holds is about to change: nobody may find it, or what comes after it.
  void unpublish(std::int32_t page);
  void copy_last_page(Sequence& sequence);
  void drop_pages_from(Sequence& sequence, std::size_t first);
  // Shares published pages with a sequence that has none yet, as long as next_tokens(first position of a
  // page) names tokens that are found.
  template <class NextTokens>
  void share_prefix(Sequence& sequence, NextTokens next_tokens);
  Status check_slot(std::int64_t slot) const;
};

template <class NextTokens>
void KvCache::State::share_prefix(Sequence& sequence, NextTokens next_tokens) {
  std::int32_t parent = PrefixIndex::none;
  for (;;) {
    const PrefixIndex::Tokens tokens = next_tokens(sequence.length);
    if (tokens.empty()) return;
    const std::int32_t page = prefixes.find(sequence.salt, parent, tokens);
    if (page == PrefixIndex::none) return;
    pool.share(page);
    sequence.pages.push_back(page);
    sequence.length += config.page_size;
    parent = page;
  }
}

}  // namespace chorale
