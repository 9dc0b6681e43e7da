// Key tiles in an engine's form. A sequence whose keys several query blocks read is packed once, by all
// threads, before the blocks start; other tiles are packed where they are used.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "base/threads.h"
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
      const bool worth = plan.block_count(sequence) >= blocks_worth_packing;
      first_tile_.push_back(worth ? tiles_ : -1);
      if (worth) tiles_ += tile_count(sequence) * plan.problem().kv_heads;
    }
    keys_.resize(static_cast<std::size_t>(tiles_ * key_elements_));
    values_.resize(static_cast<std::size_t>(tiles_ * value_elements_));
  }

  // Call once; engine_of(worker) is a thread's engine.
  template <class EngineOf>
  void pack(int threads, EngineOf engine_of) {
    for (int sequence = 0; sequence < plan_.batch().sequences(); ++sequence) {
      if (first_tile_[sequence] < 0) continue;
      parallel_for(tile_count(sequence) * plan_.problem().kv_heads, threads, [&](std::int64_t i, int worker) {
        const int head = static_cast<int>(i / tile_count(sequence));
        const std::int64_t slot = first_tile_[sequence] + i;
        fill(engine_of(worker), sequence, head, i % tile_count(sequence), keys_.data() + slot * key_elements_,
             values_.data() + slot * value_elements_);
      });
    }
  }

  // Gives the engine one tile, packing into `scratch` if that was not done before.
  struct Scratch {
    std::vector<Element> keys, values;
  };
  void use(Engine& engine, int sequence, int head, std::int64_t tile, Scratch& scratch) const {
    if (first_tile_[sequence] >= 0) {
      const std::int64_t slot = first_tile_[sequence] + head * tile_count(sequence) + tile;
      return engine.use(keys_.data() + slot * key_elements_, values_.data() + slot * value_elements_);
    }
    scratch.keys.resize(static_cast<std::size_t>(key_elements_));
    scratch.values.resize(static_cast<std::size_t>(value_elements_));
    fill(engine, sequence, head, tile, scratch.keys.data(), scratch.values.data());
    engine.use(scratch.keys.data(), scratch.values.data());
  }

 private:
  std::int64_t tile_count(int sequence) const {
    return (plan_.keys(sequence) + Engine::width - 1) / Engine::width;
  }

  void fill(Engine& engine, int sequence, int head, std::int64_t tile, Element* keys, Element* values) const {
    const KeyRows key_rows(plan_, tensors_.k, tensors_.k_scale, sequence, head, false);
    const KeyRows value_rows(plan_, tensors_.v, tensors_.v_scale, sequence, head, true);
    const std::int64_t first = tile * Engine::width,
                       count = std::min(Engine::width, plan_.keys(sequence) - first);
    engine.pack_keys(key_rows, first, count, keys);
    engine.pack_values(value_rows, first, count, values);
  }

  const TiledPlan& plan_;
  const ForwardTensors& tensors_;
  std::int64_t key_elements_, value_elements_, tiles_ = 0;
  std::vector<std::int64_t> first_tile_;  // of each sequence; -1: packed where used
  std::vector<Element> keys_, values_;
};

}  // namespace chorale::tiled
