// What a mask shows, found once a plan: for each strip of 32 rows (query positions times the heads of a KV
// head's group) and each slab of 32 keys, whether none, all or some of the pairs are visible, and which.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "implementations/cpu/mutants.h"

namespace chorale::tiled {

class TiledPlan;

class Visibility {
 public:
  static constexpr std::int64_t rows = 32, keys = 32;
  static constexpr std::int32_t empty = -1, full = -2;

  // One strip. slabs[i] is empty, full or where the slab's words start: bit k of word r tells whether row r
  // sees key k. Keys past the end of the sequence are hidden.
  struct Strip {
    std::vector<std::int32_t> slabs;
    std::vector<std::uint32_t> words;
    std::int64_t visible = 0;         // slabs that are not empty,
    std::int64_t first = 0, end = 0;  // all of [first, end)
  };

  // Nothing is computed yet.
  explicit Visibility(const TiledPlan& plan);
  // All strips of sequences of more than few_rows rows, on the plan's threads.
  void compute();

  // Some rows of a sequence under one KV head (numbered as a block's are) against the 64 keys from `first`
  // on, a multiple of 64. Bit k: whether any row sees key first + k, and whether all do.
  struct Seen {
    std::uint64_t any = 0, all = ~std::uint64_t{0};
  };
  Seen seen(int sequence, int kv_head, std::int64_t row, std::int64_t rows, std::int64_t first) const;

  const Strip& strip(int sequence, int kv_head, std::int64_t index) const {
    return strips_[static_cast<std::size_t>(first_[static_cast<std::size_t>(sequence)] +
                                            kv_head % heads_ * count_[static_cast<std::size_t>(sequence)] +
                                            index)];
  }

 private:
  // The same for `count` rows of a strip and the 32 keys of one slab.
  static Seen seen_of_slab(const Strip& strip, std::int64_t index, std::int64_t row, std::int64_t count);

  const TiledPlan& plan_;
  int heads_;                                // 1 if the mask treats all KV heads alike
  std::vector<std::int64_t> first_, count_;  // of each sequence: its strips
  std::vector<Strip> strips_;
};

// Computes single strips; one per thread. `index`: as in Visibility::strip.
class VisibilityComputer {
 public:
  explicit VisibilityComputer(const TiledPlan& plan);
  ~VisibilityComputer();
  VisibilityComputer(VisibilityComputer&&) noexcept;
  // Of slabs [first, last) of a strip.
  void compute(int sequence, int kv_head, std::int64_t index, std::int64_t first, std::int64_t last,
               Visibility::Strip& strip);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace chorale::tiled
