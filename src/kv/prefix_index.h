// PrefixIndex: which full pages hold the keys and values of which tokens. It knows nothing of who uses the
// pages.
//
// A page is known by all tokens from the sequence's start to the page's end, and by a salt. The index is a
// tree: the children of a page are the pages that come after it, so a page's own tokens and its parent say
// everything. A hash chain over the tokens only finds candidates; what counts is the comparison of the page's
// tokens and the identity of its parent, which was itself found by comparison. So a collision of hashes costs
// time and nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "chorale/kv_cache.h"

namespace chorale {

class PrefixIndex {
 public:
  using Tokens = std::span<const std::int32_t>;
  static constexpr std::int32_t none = -1;  // no page; as a parent: what comes before a first page

  // Without a function, the index's own.
  explicit PrefixIndex(PrefixHash hash);

  bool contains(std::int32_t page) const { return nodes_.contains(page); }
  // What a page holds: nothing if it is not in the index.
  Tokens tokens(std::int32_t page) const;
  // Whether `page` is known to hold `tokens` after what `parent` ends with.
  bool holds(std::int32_t page, std::uint64_t salt, std::int32_t parent, Tokens tokens) const;
  // The page that does, or none.
  std::int32_t find(std::uint64_t salt, std::int32_t parent, Tokens tokens) const;
  // `page` is not in the index; `parent` is, or is none.
  void insert(std::int32_t page, std::uint64_t salt, std::int32_t parent, Tokens tokens);
  // Takes a page out, and all that come after it: they could not be found any more. Returns what was taken
  // out: nothing if the page was not there.
  std::vector<std::int32_t> remove(std::int32_t page);
  // Takes everything out.
  std::vector<std::int32_t> clear();

 private:
  struct Node {
    std::uint64_t salt, hash;
    std::int32_t parent;
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> children;
  };
  std::uint64_t chain(std::uint64_t salt, std::int32_t parent, Tokens tokens) const;
  void erase_node(std::int32_t page);

  PrefixHash hash_;
  std::unordered_map<std::int32_t, Node> nodes_;                  // by page
  std::unordered_multimap<std::uint64_t, std::int32_t> by_hash_;  // pages
};

}  // namespace chorale
