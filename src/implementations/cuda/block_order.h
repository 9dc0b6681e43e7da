// In which order the row blocks of a launch are taken, by whichever block of threads is free. It changes the
// speed only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <span>

#include "chorale/batch.h"
#include "kernels/params.h"

namespace chorale::cuda {

struct CostedBlock {
  kernels::RowBlock block;
  std::int32_t cost;  // keys that it may see
};

// Where blocks go, longest first, in steps of a 256th of the longest, so that a long one is not left for the
// end; equal ones as they come. All are counted before the first is placed.
class LongestFirst {
 public:
  explicit LongestFirst(int most)
      : most_(std::max(1, most)), scale_(static_cast<float>(steps - 1) / static_cast<float>(most_)) {}
  void count(int cost) { ++first_[step(cost) + 1]; }
  void end_count() { std::partial_sum(first_.begin(), first_.end(), first_.begin()); }
  int place(int cost) { return first_[step(cost)]++; }

 private:
  static constexpr int steps = 256;
  std::size_t step(int cost) const {
    return static_cast<std::size_t>(
        std::min(static_cast<int>(static_cast<float>(most_ - cost) * scale_), steps - 1));
  }

  int most_;
  float scale_;
  std::array<int, steps + 1> first_{};
};

// Longest first within some sequences at a time, longer ones before shorter ones: so many whose keys and
// values under one KV head, `row_bytes` for each key, stay in the L2 cache beside what passes through it.
// `blocks`: those of one sequence together. `to`: room for all.
void write_in_order(std::span<const CostedBlock> blocks, const Batch& batch, std::int64_t row_bytes,
                    kernels::RowBlock* to);

// Heads follow each other too, so that one's keys stay in the cache. How many of the last ones are taken
// together, so that work for all multiprocessors is left when the last long block begins: at least 1.
int heads_together(std::span<const CostedBlock> blocks, int kv_heads, int multiprocessors);

}  // namespace chorale::cuda
