#include "kv/prefix_index.h"

#include <algorithm>

namespace chorale {
namespace {

// A multiplication spreads each token upwards, a shift brings the upper bits back down (as in MurmurHash3's
// finaliser).
std::uint64_t mix_tokens(std::uint64_t before, std::span<const std::int32_t> tokens) {
  std::uint64_t hash = before ^ 0x9e3779b97f4a7c15;
  for (const std::int32_t token : tokens) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 0xff51afd7ed558ccd;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

PrefixIndex::PrefixIndex(PrefixHash hash) : hash_(hash != nullptr ? hash : mix_tokens) {}

std::uint64_t PrefixIndex::chain(std::uint64_t salt, std::int32_t parent, Tokens tokens) const {
  return hash_(parent == none ? salt : nodes_.at(parent).hash, tokens);
}

PrefixIndex::Tokens PrefixIndex::tokens(std::int32_t page) const {
  const auto found = nodes_.find(page);
  return found == nodes_.end() ? Tokens{} : Tokens(found->second.tokens);
}

bool PrefixIndex::holds(std::int32_t page, std::uint64_t salt, std::int32_t parent, Tokens tokens) const {
  const auto found = nodes_.find(page);
  if (found == nodes_.end()) return false;
  const Node& node = found->second;
  return node.salt == salt && node.parent == parent && std::ranges::equal(node.tokens, tokens);
}

std::int32_t PrefixIndex::find(std::uint64_t salt, std::int32_t parent, Tokens tokens) const {
  const auto [first, last] = by_hash_.equal_range(chain(salt, parent, tokens));
  const auto found =
      std::find_if(first, last, [&](const auto& entry) { return holds(entry.second, salt, parent, tokens); });
  return found == last ? none : found->second;
}

void PrefixIndex::insert(std::int32_t page, std::uint64_t salt, std::int32_t parent, Tokens tokens) {
  const std::uint64_t hash = chain(salt, parent, tokens);
  nodes_.emplace(page, Node{salt, hash, parent, {tokens.begin(), tokens.end()}, {}});
  by_hash_.emplace(hash, page);
  if (parent != none) nodes_.at(parent).children.push_back(page);
}

std::vector<std::int32_t> PrefixIndex::remove(std::int32_t page) {
  const auto found = nodes_.find(page);
  if (found == nodes_.end()) return {};
  if (found->second.parent != none) std::erase(nodes_.at(found->second.parent).children, page);
  std::vector<std::int32_t> removed{page};
  for (std::size_t i = 0; i < removed.size(); ++i) {  // grows while it is walked
    const auto& children = nodes_.at(removed[i]).children;
    removed.insert(removed.end(), children.begin(), children.end());
    erase_node(removed[i]);
  }
  return removed;
}

void PrefixIndex::erase_node(std::int32_t page) {
  const auto node = nodes_.find(page);
  const auto [first, last] = by_hash_.equal_range(node->second.hash);
  by_hash_.erase(std::find_if(first, last, [&](const auto& entry) { return entry.second == page; }));
  nodes_.erase(node);
}

std::vector<std::int32_t> PrefixIndex::clear() {
  std::vector<std::int32_t> removed;
  for (const auto& [page, node] : nodes_) removed.push_back(page);
  std::ranges::sort(removed);
  nodes_.clear();
  by_hash_.clear();
  return removed;
}

}  // namespace chorale
