// PageMemory: the keys and values themselves. It knows nothing of sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chorale/kv_cache.h"
#include "kv/zeroed_memory.h"

namespace chorale {

class PageMemory {
 public:
  // `config` is valid.
  static Result<PageMemory> create(const KvCacheConfig& config);

  bool has_layer(int layer) const { return layer >= 0 && layer < static_cast<int>(layers_.size()); }
  TensorView keys(int layer) const { return view(layers_[static_cast<std::size_t>(layer)].keys); }
  TensorView values(int layer) const { return view(layers_[static_cast<std::size_t>(layer)].values); }
  // Empty where nothing is quantised.
  TensorView key_scales(int layer) const { return scales(layers_[static_cast<std::size_t>(layer)].keys); }
  TensorView value_scales(int layer) const { return scales(layers_[static_cast<std::size_t>(layer)].values); }

  // Whether rows [tokens, kv_heads, dim] can be stored.
  Status check_rows(int layer, std::int64_t tokens, const TensorView& k, const TensorView& v) const;
  void store(int layer, std::span<const std::int64_t> slots, const TensorView& k, const TensorView& v);

  // The first `tokens` tokens of a page in all layers: to another page, to `bytes(tokens)` of other memory,
  // and back.
  void copy(std::int32_t from, std::int32_t to, std::int64_t tokens);
  void save(std::int32_t page, std::int64_t tokens, std::byte* to) const;
  void load(std::int32_t page, std::int64_t tokens, const std::byte* from);
  std::size_t bytes(std::int64_t tokens) const;

 private:
  // Keys or values of one layer: [pages, page_size, kv_heads, dim].
  struct Side {
    ZeroedMemory memory;
    int dim;
    std::size_t token_bytes;
    std::span<const float> scales;  // of each head, in config_; empty where nothing is quantised

    std::byte* slot(std::int64_t index) const {
      return memory.data() + static_cast<std::size_t>(index) * token_bytes;
    }
  };
  struct Layer {
    Side keys, values;
  };

  explicit PageMemory(const KvCacheConfig& config) : config_(config) {}
  TensorView view(const Side& side) const;
  static TensorView scales(const Side& side);
  void write(const Side& side, std::span<const std::int64_t> slots, const TensorView& rows);
  // Calls f(side, start of the page, bytes of its first `tokens` tokens) for the keys and values of each
  // layer.
  template <class F>
  void for_each_part(std::int32_t page, std::int64_t tokens, F f) const;

  KvCacheConfig config_;
  std::vector<Layer> layers_;
};

}  // namespace chorale
