#include "kv/page_memory.h"

#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "kv/quantise.h"
#include "kv/rows.h"

namespace chorale {
namespace {

int value_dim(const KvCacheConfig& config) {
  return config.value_head_dim == 0 ? config.head_dim : config.value_head_dim;
}

// Wide enough for any valid config: no product of its fields can overflow.
__extension__ using Bytes = unsigned __int128;

Bytes pool_bytes(const KvCacheConfig& config) {
  return Bytes(config.layers) * Bytes(config.pages) * Bytes(config.page_size) * Bytes(config.kv_heads) *
         Bytes(config.head_dim + value_dim(config)) * size_of(config.dtype);
}

// An 8-bit pool takes any type of computation, others take their own.
Status check_side(std::string_view name, const TensorView& rows, const TensorView& pool,
                  std::int64_t tokens) {
  CHORALE_RETURN_IF_ERROR(check_view(name, rows, 3, 3));
  const bool quantises = !is_compute_type(pool.dtype);
  const bool right_type = quantises ? is_compute_type(rows.dtype) : rows.dtype == pool.dtype;
  if (right_type && rows.shape[0] == tokens && rows.shape[1] == pool.shape[2] &&
      rows.shape[2] == pool.shape[3])
    return Status::ok();
  return Status::invalid_argument(
      fmt::format("{} is {}: must be {} [{}, {}, {}]", name, rows.describe(),
                  quantises ? "float32, bfloat16 or float16" : chorale::name(pool.dtype), tokens,
                  pool.shape[2], pool.shape[3]));
}

}  // namespace

Result<PageMemory> PageMemory::create(const KvCacheConfig& config) {
  const Bytes bytes = pool_bytes(config);
  const std::string what = fmt::format("a pool of {} bytes ({} layers, {} pages of {} tokens)", bytes,
                                       config.layers, config.pages, config.page_size);
  if (bytes > Bytes(std::numeric_limits<std::int64_t>::max()))
    return Status::resource_exhausted(what + ": more than can be addressed");

  PageMemory memory(config);
  const auto allocate_side = [&](int dim, std::span<const float> scales) -> Result<Side> {
    const std::size_t token_bytes =
        static_cast<std::size_t>(config.kv_heads) * static_cast<std::size_t>(dim) * size_of(config.dtype);
    auto block =
        ZeroedMemory::allocate(static_cast<std::size_t>(config.pages * config.page_size) * token_bytes);
    if (!block) return block.status().with_context(what);
    return Side{std::move(*block), dim, token_bytes, scales};
  };
  const auto scales_of = [&](const std::vector<float>& scales, int layer) -> std::span<const float> {
    const auto heads = static_cast<std::size_t>(config.kv_heads);
    return scales.empty() ? std::span<const float>{}
                          : std::span(scales).subspan(static_cast<std::size_t>(layer) * heads, heads);
  };
  for (int i = 0; i < config.layers; ++i) {
    CHORALE_ASSIGN_OR_RETURN(Side keys,
                             allocate_side(config.head_dim, scales_of(memory.config_.key_scales, i)));
    CHORALE_ASSIGN_OR_RETURN(Side values,
                             allocate_side(value_dim(config), scales_of(memory.config_.value_scales, i)));
    memory.layers_.push_back({std::move(keys), std::move(values)});
  }
  return memory;
}

TensorView PageMemory::view(const Side& side) const {
  return TensorView::contiguous(side.memory.data(), config_.dtype,
                                {config_.pages, config_.page_size, config_.kv_heads, side.dim});
}

TensorView PageMemory::scales(const Side& side) {
  if (side.scales.empty()) return {};
  return TensorView::contiguous(side.scales.data(), DType::float32, {std::ssize(side.scales)});
}

Status PageMemory::check_rows(int layer, std::int64_t tokens, const TensorView& k,
                              const TensorView& v) const {
  CHORALE_RETURN_IF_ERROR(check_side("k", k, keys(layer), tokens));
  return check_side("v", v, values(layer), tokens);
}

void PageMemory::store(int layer, std::span<const std::int64_t> slots, const TensorView& k,
                       const TensorView& v) {
  const Layer& target = layers_[static_cast<std::size_t>(layer)];
  write(target.keys, slots, k);
  write(target.values, slots, v);
}

void PageMemory::write(const Side& side, std::span<const std::int64_t> slots, const TensorView& rows) {
  const RowReader reader(rows);
  std::vector<std::byte> token(side.scales.empty() ? 0 : reader.row_bytes());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    std::byte* const to = side.slot(slots[i]);
    reader.copy(static_cast<std::int64_t>(i), side.scales.empty() ? to : token.data());
    if (!side.scales.empty())
      quantise_token(token.data(), rows.dtype, side.scales, side.dim, reinterpret_cast<float8_e4m3*>(to));
  }
}

template <class F>
void PageMemory::for_each_part(std::int32_t page, std::int64_t tokens, F f) const {
  for (const Layer& layer : layers_) {
    for (const Side* side : {&layer.keys, &layer.values})
      f(*side, side->slot(std::int64_t{page} * config_.page_size),
        static_cast<std::size_t>(tokens) * side->token_bytes);
  }
}

void PageMemory::copy(std::int32_t from, std::int32_t to, std::int64_t tokens) {
  for_each_part(from, tokens, [&](const Side& side, const std::byte* part, std::size_t bytes) {
    std::memcpy(side.slot(std::int64_t{to} * config_.page_size), part, bytes);
  });
}

void PageMemory::save(std::int32_t page, std::int64_t tokens, std::byte* to) const {
  for_each_part(page, tokens, [&](const Side&, const std::byte* part, std::size_t bytes) {
    std::memcpy(to, part, bytes);
    to += bytes;
  });
}

void PageMemory::load(std::int32_t page, std::int64_t tokens, const std::byte* from) {
  for_each_part(page, tokens, [&](const Side&, std::byte* part, std::size_t bytes) {
    std::memcpy(part, from, bytes);
    from += bytes;
  });
}

std::size_t PageMemory::bytes(std::int64_t tokens) const {
  std::size_t sum = 0;
  for (const Layer& layer : layers_) sum += layer.keys.token_bytes + layer.values.token_bytes;
  return sum * static_cast<std::size_t>(tokens);
}

}  // namespace chorale
