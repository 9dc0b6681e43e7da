// Prefix reuse: the functions of KvCache that publish full pages and find them again.
#include <fmt/format.h>

#include <algorithm>

#include "kv/kv_cache_state.h"

namespace chorale {
namespace {

// The first position at which a sequence's published pages hold other tokens than these, or -1.
std::int64_t first_difference(const PrefixIndex& prefixes, const Sequence& sequence, std::size_t page_size,
                              std::span<const std::int32_t> tokens) {
  for (std::size_t first = 0; first + page_size <= tokens.size(); first += page_size) {
    const auto held = prefixes.tokens(sequence.pages[first / page_size]);
    if (held.empty()) continue;
    const auto differs = std::ranges::mismatch(held, tokens.subspan(first, page_size)).in1 - held.begin();
    if (differs < std::ssize(held)) return static_cast<std::int64_t>(first) + differs;
  }
  return -1;
}

}  // namespace

KvCache::PrefixMatch KvCache::add_with_prefix(std::span<const std::int32_t> tokens, std::uint64_t salt) {
  const auto page_size = static_cast<std::size_t>(config().page_size);
  Sequence sequence{.salt = salt, .epoch = state_->epoch, .pages = {}, .length = 0};
  state_->share_prefix(sequence, [&](std::int64_t position) {
    const auto first = static_cast<std::size_t>(position);
    const bool leaves_one = first + page_size < tokens.size();
    return leaves_one ? tokens.subspan(first, page_size) : PrefixIndex::Tokens{};
  });
  const std::int64_t found = sequence.length;
  return {state_->insert(std::move(sequence)), found};
}

Status KvCache::publish(SequenceId id, std::span<const std::int32_t> tokens) {
  CHORALE_ASSIGN_OR_RETURN(Sequence* const sequence, state_->find(id));
  if (std::ssize(tokens) > sequence->length)
    return Status::out_of_range(
        fmt::format("publish {} tokens of sequence {}: it has {}", tokens.size(), id, sequence->length));
  if (sequence->epoch != state_->epoch) return Status::ok();
  PrefixIndex& prefixes = state_->prefixes;
  const auto page_size = static_cast<std::size_t>(config().page_size);
  if (const std::int64_t at = first_difference(prefixes, *sequence, page_size, tokens); at >= 0)
    return Status::invalid_argument(
        fmt::format("publish sequence {}: its position {} was published with another token than {}", id, at,
                    tokens[static_cast<std::size_t>(at)]));

  std::int32_t parent = PrefixIndex::none;
  for (std::size_t i = 0; (i + 1) * page_size <= tokens.size(); ++i) {
    std::int32_t& own = sequence->pages[i];
    const auto held = tokens.subspan(i * page_size, page_size);
    if (!prefixes.holds(own, sequence->salt, parent, held)) {
      if (const std::int32_t known = prefixes.find(sequence->salt, parent, held);
          known != PrefixIndex::none) {
        state_->pool.share(known);
        state_->release_page(own);
        own = known;
      } else {
        state_->unpublish(own);  // it was known after other tokens only if an earlier call said other tokens
        prefixes.insert(own, sequence->salt, parent, held);
      }
    }
    parent = own;
  }
  return Status::ok();
}

void KvCache::forget_prefixes() {
  for (const std::int32_t page : state_->prefixes.clear()) {
    if (references(page) == 0) state_->pool.discard(page);
  }
  ++state_->epoch;
}

}  // namespace chorale
