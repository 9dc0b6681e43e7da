// Key tiles in an engine's form. A sequence whose keys several query blocks read is packed once, by all
// threads, before the blocks start; other tiles are packed where they are used.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "base/threads.h"
#include "implementations/cpu/finite.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/plan.h"

namespace chorale::tiled {

template <class Engine>
class PackedTiles {
 public:
  using Element = typename Engine::Element;

  PackedTiles(const TiledPlan& plan, const ForwardTensors& tensors)
      : plan_(plan),
        tensors_(tensors),
        key_elements_(Engine::key_elements(plan.problem())),
        value_elements_(Engine::value_elements(plan.problem())) {
    constexpr std::int64_t blocks_worth_packing = 4;
    for (int sequence = 0; sequence < plan.batch().sequences(); ++sequence) {
      const bool worth =
          plan.block_count(sequence) >= blocks_worth_packing && plan.sequence_rows(sequence) > few_rows;
      first_tile_.push_back(worth ? tiles_ : -1);
      if (worth) tiles_ += tile_count(sequence) * plan.problem().kv_heads;
    }
    if (tiles_ == 0) return;
    keys_.swap(kept().keys);
    values_.swap(kept().values);
    keys_.resize(static_cast<std::size_t>(tiles_ * key_elements_));
    values_.resize(static_cast<std::size_t>(tiles_ * value_elements_));
    finite_.resize(static_cast<std::size_t>(tiles_));
  }

  PackedTiles(const PackedTiles&) = delete;
  ~PackedTiles() {
    constexpr std::size_t most = std::size_t{64} << 20;  // bytes of each
    if (tiles_ == 0 || (keys_.capacity() + values_.capacity()) * sizeof(Element) > 2 * most) return;
    keys_.swap(kept().keys);
    values_.swap(kept().values);
  }

  // Call once; engine_of(worker) is a thread's engine.
  template <class EngineOf>
  void pack(int threads, EngineOf engine_of) {
    for (int sequence = 0; sequence < plan_.batch().sequences(); ++sequence) {
      if (first_tile_[sequence] < 0) continue;
      parallel_for(tile_count(sequence) * plan_.problem().kv_heads, threads, [&](std::int64_t i, int worker) {
        // All heads of a tile before the next tile: their rows lie side by side, in the same pages.
        const int head = static_cast<int>(i % plan_.problem().kv_heads);
        const std::int64_t tile = i / plan_.problem().kv_heads;
        if (!is_seen(sequence, head, tile)) return;
        const std::int64_t slot = slot_of(sequence, head, tile);
        finite_[static_cast<std::size_t>(slot)] =
            fill(engine_of(worker), sequence, head, tile, keys_.data() + slot * key_elements_,
                 values_.data() + slot * value_elements_);
      });
    }
  }

  // Gives the engine one tile, packing into `scratch` if that was not done before.
  struct Scratch {
    AlignedVector<Element> keys, values;
  };
  void use(Engine& engine, int sequence, int head, std::int64_t tile, Scratch& scratch) const {
    if (first_tile_[sequence] >= 0) {
      const std::int64_t slot = slot_of(sequence, head, tile);
      return engine.use(keys_.data() + slot * key_elements_, values_.data() + slot * value_elements_,
                        finite_[static_cast<std::size_t>(slot)] != 0);
    }
    scratch.keys.resize(static_cast<std::size_t>(key_elements_));
    scratch.values.resize(static_cast<std::size_t>(value_elements_));
    const bool finite = fill(engine, sequence, head, tile, scratch.keys.data(), scratch.values.data());
    engine.use(scratch.keys.data(), scratch.values.data(), finite);
  }

  // Lets the engine ask the memory for a tile that it will use next, if that is packed, while it multiplies
  // `rows` rows with this one.
  void ask_for(Engine& engine, int sequence, int head, std::int64_t tile, std::int64_t rows) const {
    if (first_tile_[sequence] < 0) return;
    const std::int64_t slot = slot_of(sequence, head, tile);
    engine.ask_for(keys_.data() + slot * key_elements_, values_.data() + slot * value_elements_, rows);
  }

 private:
  // Memory that stays with the calling thread from one call to the next, unless it is large: fresh pages cost
  // more than packing into them.
  struct Kept {
    AlignedVector<Element> keys, values;
  };
  static Kept& kept() {
    thread_local Kept memory;
    return memory;
  }

  std::int64_t tile_count(int sequence) const {
    return (plan_.keys(sequence) + Engine::width - 1) / Engine::width;
  }

  std::int64_t slot_of(int sequence, int head, std::int64_t tile) const {
    return first_tile_[sequence] + head * tile_count(sequence) + tile;
  }

  // Whether the mask shows any of the tile to any query row.
  bool is_seen(int sequence, int head, std::int64_t tile) const {
    const std::int64_t first = tile * Engine::width / Visibility::keys;
    for (std::int64_t i = 0; i < plan_.strips(sequence); ++i) {
      const auto& slabs = plan_.visibility().strip(sequence, head, i).slabs;
      for (std::int64_t s = first; s < first + Engine::width / Visibility::keys; ++s)
        if (s < std::ssize(slabs) && slabs[static_cast<std::size_t>(s)] != Visibility::empty) return true;
    }
    return false;
  }

  // Whether all values are finite.
  bool fill(Engine& engine, int sequence, int head, std::int64_t tile, Element* keys, Element* values) const {
    const KeyRows key_rows(plan_, tensors_.k, tensors_.k_scale, sequence, head, false);
    const KeyRows value_rows(plan_, tensors_.v, tensors_.v_scale, sequence, head, true);
    const std::int64_t first = tile * Engine::width,
                       count = std::min(Engine::width, plan_.keys(sequence) - first);
    engine.pack_keys(key_rows, first, count, keys);
    engine.pack_values(value_rows, first, count, values);
    return all_finite(values, value_elements_);
  }

  const TiledPlan& plan_;
  const ForwardTensors& tensors_;
  std::int64_t key_elements_, value_elements_, tiles_ = 0;
  std::vector<std::int64_t> first_tile_;  // of each sequence; -1: packed where used
  AlignedVector<Element> keys_, values_;
  std::vector<std::uint8_t> finite_;  // the values of each tile
};

}  // namespace chorale::tiled
