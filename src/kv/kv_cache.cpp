#include "chorale/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "chorale/problem.h"
#include "kv/page_pool.h"
#include "kv/page_size.h"
#include "kv/rows.h"
#include "kv/zeroed_memory.h"

namespace chorale {
namespace {

constexpr std::int64_t max_int32 = std::numeric_limits<std::int32_t>::max();

Status check_range(std::string_view name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return Status::ok();
  return Status::invalid_argument(fmt::format("{} {}: must be from {} to {}", name, value, least, most));
}

int value_dim(const KvCacheConfig& config) {
  return config.value_head_dim == 0 ? config.head_dim : config.value_head_dim;
}

// Keys or values of one layer, of every page: [pages, page_size, kv_heads, dim].
struct Side {
  ZeroedMemory memory;
  std::size_t token_bytes;

  std::byte* slot(std::int64_t index) const {
    return memory.data() + static_cast<std::size_t>(index) * token_bytes;
  }
};
struct Layer {
  Side keys, values;
};

struct Sequence {
  std::vector<std::int32_t> pages;  // ceil(length / page_size)
  std::int64_t length = 0;          // tokens
};

// What an append takes from the pool.
struct Growth {
  std::int64_t pages = 0;         // free pages needed, the copy included
  bool copies_last_page = false;  // it is partly filled and another sequence holds it too
};

TensorView pool_view(const KvCacheConfig& config, const Side& side, int dim) {
  return TensorView::contiguous(side.memory.data(), config.dtype,
                                {config.pages, config.page_size, config.kv_heads, dim});
}

// Wide enough for any valid config: no product of its fields can overflow.
__extension__ using Bytes = unsigned __int128;

Bytes pool_bytes(const KvCacheConfig& config) {
  return Bytes(config.layers) * Bytes(config.pages) * Bytes(config.page_size) * Bytes(config.kv_heads) *
         Bytes(config.head_dim + value_dim(config)) * size_of(config.dtype);
}

Status check_stored(std::string_view name, const TensorView& view, const TensorView& pool,
                    std::size_t tokens) {
  CHORALE_RETURN_IF_ERROR(check_view(name, view, 3, 3));
  const auto rows = static_cast<std::int64_t>(tokens);
  if (view.dtype != pool.dtype || view.shape[0] != rows || view.shape[1] != pool.shape[2] ||
      view.shape[2] != pool.shape[3])
    return Status::invalid_argument(fmt::format("{} is {}: must be {} [{}, {}, {}]", name, view.describe(),
                                                chorale::name(pool.dtype), rows, pool.shape[2],
                                                pool.shape[3]));
  return Status::ok();
}

void write_rows(const TensorView& rows, std::span<const std::int64_t> slots, const Side& side) {
  const RowReader reader(rows);
  for (std::size_t i = 0; i < slots.size(); ++i)
    reader.copy(static_cast<std::int64_t>(i), side.slot(slots[i]));
}

}  // namespace

Status KvCacheConfig::validate() const {
  CHORALE_RETURN_IF_ERROR(check_range("layers", layers, 1, max_int32));
  CHORALE_RETURN_IF_ERROR(check_range("kv_heads", kv_heads, 1, max_int32));
  CHORALE_RETURN_IF_ERROR(check_range("head_dim", head_dim, 1, Problem::max_head_dim));
  CHORALE_RETURN_IF_ERROR(check_range("value_head_dim", value_head_dim, 0, Problem::max_head_dim));
  CHORALE_RETURN_IF_ERROR(check_page_size(page_size));
  return check_range("pages", pages, 1, max_int32);  // block tables hold int32
}

struct KvCache::State {
  explicit State(const KvCacheConfig& c) : config(c), pool(c.pages) {}

  KvCacheConfig config;
  std::vector<Layer> layers;
  PagePool pool;
  std::unordered_map<SequenceId, Sequence> sequences;
  SequenceId next_id = 0;

  Result<Sequence*> find(SequenceId id) {
    const auto found = sequences.find(id);
    if (found != sequences.end()) return &found->second;
    if (id >= 0 && id < next_id) return Status::not_found(fmt::format("sequence {}: it was freed", id));
    return Status::not_found(fmt::format("sequence {}: the cache never had it", id));
  }
  Result<Growth> growth(const Sequence& sequence, std::int64_t tokens) const;
  void copy_last_page(Sequence& sequence);
  void drop_pages_from(Sequence& sequence, std::size_t first);
  Status check_slot(std::int64_t slot) const;
};

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

void KvCache::State::copy_last_page(Sequence& sequence) {
  const std::int32_t shared = sequence.pages.back();
  const std::int32_t own = pool.allocate();
  const auto filled = static_cast<std::size_t>(sequence.length % config.page_size);
  for (const Layer& layer : layers) {
    for (const Side* side : {&layer.keys, &layer.values})
      std::memcpy(side->slot(std::int64_t{own} * config.page_size),
                  side->slot(std::int64_t{shared} * config.page_size), filled * side->token_bytes);
  }
  pool.release(shared);
  sequence.pages.back() = own;
}

void KvCache::State::drop_pages_from(Sequence& sequence, std::size_t first) {
  for (std::size_t i = first; i < sequence.pages.size(); ++i) pool.release(sequence.pages[i]);
  sequence.pages.resize(first);
}

Status KvCache::State::check_slot(std::int64_t slot) const {
  const std::int64_t slots = config.pages * config.page_size;
  if (slot < 0 || slot >= slots)
    return Status::out_of_range(fmt::format("slot {}: the pool has slots 0 to {}", slot, slots - 1));
  const auto page = static_cast<std::int32_t>(slot / config.page_size);
  if (const int owners = pool.references(page); owners != 1)
    return Status::invalid_argument(
        fmt::format("slot {}: its page {} has {} owners: must be exactly 1", slot, page, owners));
  return Status::ok();
}

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

Result<KvCache> KvCache::create(const KvCacheConfig& config) {
  CHORALE_RETURN_IF_ERROR(config.validate());
  const Bytes bytes = pool_bytes(config);
  const std::string what = fmt::format("a pool of {} bytes ({} layers, {} pages of {} tokens)", bytes,
                                       config.layers, config.pages, config.page_size);
  if (bytes > Bytes(std::numeric_limits<std::int64_t>::max()))
    return Status::resource_exhausted(what + ": more than can be addressed");

  auto state = std::make_unique<State>(config);
  const auto allocate_side = [&](int dim) -> Result<Side> {
    const std::size_t token_bytes =
        static_cast<std::size_t>(config.kv_heads) * static_cast<std::size_t>(dim) * size_of(config.dtype);
    auto memory =
        ZeroedMemory::allocate(static_cast<std::size_t>(config.pages * config.page_size) * token_bytes);
    if (!memory) return memory.status().with_context(what);
    return Side{std::move(*memory), token_bytes};
  };
  for (int i = 0; i < config.layers; ++i) {
    CHORALE_ASSIGN_OR_RETURN(Side keys, allocate_side(config.head_dim));
    CHORALE_ASSIGN_OR_RETURN(Side values, allocate_side(value_dim(config)));
    state->layers.push_back({std::move(keys), std::move(values)});
  }
  return KvCache(std::move(state));
}

const KvCacheConfig& KvCache::config() const { return state_->config; }

// A layer that does not exist has no view; attention refuses it.
TensorView KvCache::keys(int layer) const {
  if (layer < 0 || layer >= config().layers) return {};
  return pool_view(config(), state_->layers[static_cast<std::size_t>(layer)].keys, config().head_dim);
}

TensorView KvCache::values(int layer) const {
  if (layer < 0 || layer >= config().layers) return {};
  return pool_view(config(), state_->layers[static_cast<std::size_t>(layer)].values, value_dim(config()));
}

KvCache::SequenceId KvCache::add() {
  state_->sequences.emplace(state_->next_id, Sequence{});
  return state_->next_id++;
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
  if (growth.copies_last_page) state_->copy_last_page(*sequence);
  const std::int64_t page_size = config().page_size;
  for (std::int64_t& slot : slots) {
    if (sequence->length % page_size == 0) sequence->pages.push_back(state_->pool.allocate());
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
  const SequenceId forked = add();
  state_->sequences[forked] = std::move(copy);
  return forked;
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
std::int64_t KvCache::used_pages() const { return state_->pool.used_pages(); }
int KvCache::references(std::int32_t page) const { return state_->pool.references(page); }

Status KvCache::store(int layer, std::span<const std::int64_t> slots, const TensorView& k,
                      const TensorView& v) {
  if (layer < 0 || layer >= config().layers)
    return Status::out_of_range(
        fmt::format("layer {}: the cache has layers 0 to {}", layer, config().layers - 1));
  CHORALE_RETURN_IF_ERROR(check_stored("k", k, keys(layer), slots.size()));
  CHORALE_RETURN_IF_ERROR(check_stored("v", v, values(layer), slots.size()));
  for (const std::int64_t slot : slots) CHORALE_RETURN_IF_ERROR(state_->check_slot(slot));
  const Layer& target = state_->layers[static_cast<std::size_t>(layer)];
  write_rows(k, slots, target.keys);
  write_rows(v, slots, target.values);
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
