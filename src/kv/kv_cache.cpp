#include "chorale/kv_cache.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "chorale/problem.h"
#include "kv/kv_cache_state.h"
#include "kv/page_size.h"
#include "kv/quantise.h"

namespace chorale {
namespace {

constexpr std::int64_t max_int32 = std::numeric_limits<std::int32_t>::max();

Status check_range(std::string_view name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return Status::ok();
  return Status::invalid_argument(fmt::format("{} {}: must be from {} to {}", name, value, least, most));
}

}  // namespace

Status KvCacheConfig::validate() const {
  CHORALE_RETURN_IF_ERROR(check_range("layers", layers, 1, max_int32));
  CHORALE_RETURN_IF_ERROR(check_range("kv_heads", kv_heads, 1, max_int32));
  CHORALE_RETURN_IF_ERROR(check_range("head_dim", head_dim, 1, Problem::max_head_dim));
  CHORALE_RETURN_IF_ERROR(check_range("value_head_dim", value_head_dim, 0, Problem::max_head_dim));
  CHORALE_RETURN_IF_ERROR(check_page_size(page_size));
  CHORALE_RETURN_IF_ERROR(check_range("pages", pages, 1, max_int32));  // block tables hold int32
  for (const auto& [name, scales] :
       {std::pair("key_scales", &key_scales), std::pair("value_scales", &value_scales)}) {
    const std::int64_t wanted = is_compute_type(dtype) ? 0 : std::int64_t{layers} * kv_heads;
    if (std::ssize(*scales) != wanted)
      return Status::invalid_argument(
          fmt::format("{} has {} elements: must have {} for {} layers of {} heads in {}", name,
                      scales->size(), wanted, layers, kv_heads, chorale::name(dtype)));
    for (std::int64_t i = 0; i < wanted; ++i)
      CHORALE_RETURN_IF_ERROR(check_kv_scale(name, i, (*scales)[static_cast<std::size_t>(i)]));
  }
  return Status::ok();
}

Result<Sequence*> KvCache::State::find(SequenceId id) {
  const auto found = sequences.find(id);
  if (found != sequences.end()) return &found->second;
  if (id >= 0 && id < next_id)
    return Status::not_found(fmt::format("sequence {}: it was freed or swapped out", id));
  return Status::not_found(fmt::format("sequence {}: the cache never had it", id));
}

KvCache::SequenceId KvCache::State::insert(Sequence sequence) {
  sequences.emplace(next_id, std::move(sequence));
  return next_id++;
}

Result<Growth> KvCache::State::growth(const Sequence& sequence, std::int64_t tokens) const {
  if (tokens < 0)
    return Status::invalid_argument(fmt::format("append of {} tokens: must not be negative", tokens));
  if (tokens > max_int32 - sequence.length)
    return Status::out_of_range(fmt::format("append of {} tokens to {}: a sequence holds at most {}", tokens,
                                            sequence.length, max_int32));
  Growth growth;
  if (tokens == 0) return growth;
  const bool partly_filled = sequence.length % config.page_size != 0;
  growth.copies_last_page = partly_filled && pool.references(sequence.pages.back()) > 1;
  const std::int64_t pages = (sequence.length + tokens + config.page_size - 1) / config.page_size;
  growth.pages = pages - std::ssize(sequence.pages) + (growth.copies_last_page ? 1 : 0);
  return growth;
}

std::int32_t KvCache::State::take_page() {
  const std::int32_t page = pool.allocate();
  unpublish(page);
  return page;
}

void KvCache::State::unpublish(std::int32_t page) {
  for (const std::int32_t removed : prefixes.remove(page)) {
    if (pool.references(removed) == 0) pool.discard(removed);
  }
}

void KvCache::State::copy_last_page(Sequence& sequence) {
  const std::int32_t shared = sequence.pages.back();
  const std::int32_t own = take_page();
  memory.copy(shared, own, sequence.length % config.page_size);
  release_page(shared);
  sequence.pages.back() = own;
}

// Last page first: what comes later in a sequence is of use to fewer others, and shall be evicted earlier.
void KvCache::State::drop_pages_from(Sequence& sequence, std::size_t first) {
  while (sequence.pages.size() > first) {
    release_page(sequence.pages.back());
    sequence.pages.pop_back();
  }
}

Status KvCache::State::check_slot(std::int64_t slot) const {
  const std::int64_t slots = config.pages * config.page_size;
  if (slot < 0 || slot >= slots)
    return Status::out_of_range(fmt::format("slot {}: the pool has slots 0 to {}", slot, slots - 1));
  const auto page = static_cast<std::int32_t>(slot / config.page_size);
  if (const int owners = pool.references(page); owners != 1)
    return Status::invalid_argument(
        fmt::format("slot {}: its page {} has {} owners: must be exactly 1", slot, page, owners));
  if (prefixes.contains(page))
    return Status::invalid_argument(
        fmt::format("slot {}: its page {} is published: must not change", slot, page));
  return Status::ok();
}

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

Result<KvCache> KvCache::create(const KvCacheConfig& config) {
  CHORALE_RETURN_IF_ERROR(config.validate());
  CHORALE_ASSIGN_OR_RETURN(PageMemory memory, PageMemory::create(config));
  return KvCache(std::make_unique<State>(config, std::move(memory)));
}

const KvCacheConfig& KvCache::config() const { return state_->config; }

// A layer that does not exist has no view; attention refuses it.
TensorView KvCache::keys(int layer) const {
  return state_->memory.has_layer(layer) ? state_->memory.keys(layer) : TensorView{};
}

TensorView KvCache::values(int layer) const {
  return state_->memory.has_layer(layer) ? state_->memory.values(layer) : TensorView{};
}

TensorView KvCache::key_scales(int layer) const {
  return state_->memory.has_layer(layer) ? state_->memory.key_scales(layer) : TensorView{};
}

TensorView KvCache::value_scales(int layer) const {
  return state_->memory.has_layer(layer) ? state_->memory.value_scales(layer) : TensorView{};
}

KvCache::SequenceId KvCache::add(std::uint64_t salt) {
  return state_->insert({.salt = salt, .epoch = state_->epoch, .pages = {}, .length = 0});
}

Result<std::vector<std::int64_t>> KvCache::append(SequenceId id, std::int64_t tokens) {
  CHORALE_ASSIGN_OR_RETURN(Sequence* const sequence, state_->find(id));
  CHORALE_ASSIGN_OR_RETURN(const Growth growth, state_->growth(*sequence, tokens));
  if (growth.pages > free_pages())
    return Status::resource_exhausted(
        fmt::format("append of {} tokens to sequence {} needs {} pages: {} of {} are free", tokens, id,
                    growth.pages, free_pages(), config().pages));
  std::vector<std::int64_t> slots(
      static_cast<std::size_t>(tokens));  // before anything changes: memory may run out
  const std::int64_t page_size = config().page_size;
  if (growth.copies_last_page)
    state_->copy_last_page(*sequence);
  else if (tokens > 0 && sequence->length % page_size != 0)
    state_->unpublish(sequence->pages.back());
  for (std::int64_t& slot : slots) {
    if (sequence->length % page_size == 0) sequence->pages.push_back(state_->take_page());
    slot = sequence->pages.back() * page_size + sequence->length % page_size;
    ++sequence->length;
  }
  return slots;
}

Result<std::int64_t> KvCache::pages_for(SequenceId id, std::int64_t tokens) const {
  CHORALE_ASSIGN_OR_RETURN(const Sequence* const sequence, state_->find(id));
  CHORALE_ASSIGN_OR_RETURN(const Growth growth, state_->growth(*sequence, tokens));
  return growth.pages;
}

Result<KvCache::SequenceId> KvCache::fork(SequenceId id) {
  CHORALE_ASSIGN_OR_RETURN(const Sequence* const sequence, state_->find(id));
  Sequence copy = *sequence;
  for (const std::int32_t page : copy.pages) state_->pool.share(page);
  return state_->insert(std::move(copy));
}

Status KvCache::truncate(SequenceId id, std::int64_t length) {
  CHORALE_ASSIGN_OR_RETURN(Sequence* const sequence, state_->find(id));
  if (length < 0 || length > sequence->length)
    return Status::out_of_range(
        fmt::format("truncate sequence {} to {} tokens: it has {}", id, length, sequence->length));
  sequence->length = length;
  const std::int64_t page_size = config().page_size;
  state_->drop_pages_from(*sequence, static_cast<std::size_t>((length + page_size - 1) / page_size));
  return Status::ok();
}

Status KvCache::free(SequenceId id) {
  CHORALE_ASSIGN_OR_RETURN(Sequence* const sequence, state_->find(id));
  state_->drop_pages_from(*sequence, 0);
  state_->sequences.erase(id);
  return Status::ok();
}

Result<std::int64_t> KvCache::length(SequenceId id) const {
  CHORALE_ASSIGN_OR_RETURN(const Sequence* const sequence, state_->find(id));
  return sequence->length;
}

Result<std::vector<std::int32_t>> KvCache::block_table(SequenceId id) const {
  CHORALE_ASSIGN_OR_RETURN(const Sequence* const sequence, state_->find(id));
  return sequence->pages;
}

std::int64_t KvCache::free_pages() const { return state_->pool.free_pages(); }
std::int64_t KvCache::cached_pages() const { return state_->pool.kept_pages(); }
std::int64_t KvCache::used_pages() const { return state_->pool.used_pages(); }
int KvCache::references(std::int32_t page) const { return state_->pool.references(page); }

Status KvCache::store(int layer, std::span<const std::int64_t> slots, const TensorView& k,
                      const TensorView& v) {
  if (!state_->memory.has_layer(layer))
    return Status::out_of_range(
        fmt::format("layer {}: the cache has layers 0 to {}", layer, config().layers - 1));
  CHORALE_RETURN_IF_ERROR(state_->memory.check_rows(layer, std::ssize(slots), k, v));
  for (const std::int64_t slot : slots) CHORALE_RETURN_IF_ERROR(state_->check_slot(slot));
  state_->memory.store(layer, slots, k, v);
  return Status::ok();
}

Result<Batch> KvCache::batch(std::span<const SequenceId> sequences,
                             std::span<const std::int32_t> q_lens) const {
  if (sequences.size() != q_lens.size())
    return Status::invalid_argument(
        fmt::format("{} sequences and {} q_lens: must be as many", sequences.size(), q_lens.size()));
  std::vector<std::int32_t> cu_seqlens_q{0}, kv_lens;
  std::vector<std::vector<std::int32_t>> block_tables;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    CHORALE_ASSIGN_OR_RETURN(const Sequence* const sequence, state_->find(sequences[i]));
    if (q_lens[i] < 0 || q_lens[i] > sequence->length)
      return Status::out_of_range(fmt::format("q_lens[{}] is {}: sequence {} has {} tokens", i, q_lens[i],
                                              sequences[i], sequence->length));
    if (q_lens[i] > max_int32 - cu_seqlens_q.back())
      return Status::out_of_range(fmt::format("q_lens add up to more than {} at [{}]", max_int32, i));
    cu_seqlens_q.push_back(cu_seqlens_q.back() + q_lens[i]);
    kv_lens.push_back(static_cast<std::int32_t>(sequence->length));
    block_tables.push_back(sequence->pages);
  }
  return Batch::paged(std::move(cu_seqlens_q), std::move(kv_lens), config().page_size, block_tables);
}

}  // namespace chorale
