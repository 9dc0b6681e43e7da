// Swap: the functions of KvCache that move a sequence to host memory and back.
#include <fmt/format.h>

#include <algorithm>

#include "kv/kv_cache_state.h"
#include "kv/zeroed_memory.h"

namespace chorale {

struct SwappedSequence::State {
  std::shared_ptr<const int> cache;  // KvCache::State::identity
  std::uint64_t salt;
  std::int64_t epoch, length;
  std::vector<std::int32_t> published;  // tokens of the leading pages that were published
  ZeroedMemory memory;                  // page after page, as PageMemory::save writes them
  std::size_t bytes;
};

SwappedSequence::SwappedSequence(std::unique_ptr<State> state) : state_(std::move(state)) {}
SwappedSequence::SwappedSequence(SwappedSequence&&) noexcept = default;
SwappedSequence& SwappedSequence::operator=(SwappedSequence&&) noexcept = default;
SwappedSequence::~SwappedSequence() = default;

std::int64_t SwappedSequence::length() const { return state_->length; }
std::size_t SwappedSequence::bytes() const { return state_->bytes; }

namespace {

// Calls f(index of a page, its first position, tokens in it) for each page of a sequence from page `first`
// on.
template <class F>
void for_each_page(std::int64_t length, int page_size, std::size_t first, F f) {
  for (std::int64_t at = static_cast<std::int64_t>(first) * page_size; at < length; at += page_size)
    f(static_cast<std::size_t>(at / page_size), at, std::min<std::int64_t>(page_size, length - at));
}

}  // namespace

Result<SwappedSequence> KvCache::swap_out(SequenceId id) {
  CHORALE_ASSIGN_OR_RETURN(const Sequence* const sequence, state_->find(id));
  const PageMemory& pages = state_->memory;
  const std::size_t bytes = pages.bytes(sequence->length);
  auto memory = ZeroedMemory::allocate(std::max<std::size_t>(bytes, 1));
  if (!memory) return memory.status().with_context(fmt::format("swap out sequence {}", id));

  std::vector<std::int32_t> published;
  for (const std::int32_t page : sequence->pages) {
    const auto tokens = state_->prefixes.tokens(page);
    if (tokens.empty()) break;
    published.insert(published.end(), tokens.begin(), tokens.end());
  }
  for_each_page(sequence->length, config().page_size, 0,
                [&](std::size_t i, std::int64_t at, std::int64_t tokens) {
                  pages.save(sequence->pages[i], tokens, memory->data() + pages.bytes(at));
                });
  auto state = std::make_unique<SwappedSequence::State>(
      SwappedSequence::State{state_->identity, sequence->salt, sequence->epoch, sequence->length,
                             std::move(published), std::move(*memory), bytes});
  CHORALE_RETURN_IF_ERROR(free(id));
  return SwappedSequence(std::move(state));
}

Result<KvCache::SequenceId> KvCache::swap_in(const SwappedSequence& swapped) {
  const SwappedSequence::State& from = *swapped.state_;
  if (from.cache != state_->identity)
    return Status::invalid_argument(
        fmt::format("swap in {} tokens: they were swapped out of another cache", from.length));

  Sequence sequence{.salt = from.salt, .epoch = from.epoch, .pages = {}, .length = 0};
  const int page_size = config().page_size;
  if (from.epoch == state_->epoch) {
    state_->share_prefix(sequence, [&](std::int64_t position) {
      const bool known = position + page_size <= std::min(from.length, std::ssize(from.published));
      return known ? std::span(from.published)
                         .subspan(static_cast<std::size_t>(position), static_cast<std::size_t>(page_size))
                   : PrefixIndex::Tokens{};
    });
  }
  const std::size_t shared = sequence.pages.size();
  const std::int64_t needed = (from.length - sequence.length + page_size - 1) / page_size;
  if (needed > free_pages()) {
    const auto status =
        Status::resource_exhausted(fmt::format("swap in {} tokens: needs {} pages, {} of {} are free",
                                               from.length, needed, free_pages(), config().pages));
    state_->drop_pages_from(sequence, 0);
    return status;
  }
  for_each_page(from.length, page_size, shared, [&](std::size_t, std::int64_t at, std::int64_t tokens) {
    sequence.pages.push_back(state_->take_page());
    state_->memory.load(sequence.pages.back(), tokens, from.memory.data() + state_->memory.bytes(at));
  });
  sequence.length = from.length;
  return state_->insert(std::move(sequence));
}

}  // namespace chorale
