// Products of bfloat16 pairs, on AMX or AVX-512 BF16 (simd/dot_tiles.h). Probabilities are rounded to
// bfloat16.
#pragma once

#include <vector>

#include "base/aligned.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/score_tile.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale::tiled {

class DotEngine {
 public:
  using Element = bfloat16;
  static constexpr std::int64_t width = tile_keys;
  static constexpr bool takes_few_rows = true;
  static constexpr std::int64_t strip_rows = 32, partial_rows = 16, partial_keys = 32;

  explicit DotEngine(const TiledPlan& plan);

  // Must live around scores() and accumulate().
  simd::DotScope scope() const { return simd::DotScope(level_); }

  static std::int64_t key_dim(const Problem& problem) { return simd::round_up(problem.head_dim, 32); }
  static std::int64_t value_dim(const Problem& problem) { return simd::round_up(problem.value_dim()); }
  static std::int64_t key_elements(const Problem& problem) { return key_dim(problem) * width; }
  static std::int64_t value_elements(const Problem& problem) { return width * value_dim(problem); }
  void pack_keys(const KeyRows& keys, std::int64_t first, std::int64_t count, bfloat16* packed);
  void pack_values(const KeyRows& values, std::int64_t first, std::int64_t count, bfloat16* packed);

  void load_queries(const QueryBlock& block, const TensorView& q);
  void use(const bfloat16* keys, const bfloat16* values, bool finite_values) {
    keys_ = keys, values_ = values, finite_values_ = finite_values;
  }

  void ask_for(const bfloat16*, const bfloat16*, std::int64_t) {}

  void scores(ScoreTile& tile);
  void softmax(ScoreTile& tile, const float* before, simd::RowSoftmax* to) {
    simd::softmax_rows(tile.data(), width, tile.rows(), tile.count(), before, tile.log2_factor(), to,
                       p_.data(), width);
  }
  void accumulate(ScoreTile& tile, float* out, std::int64_t out_row);

 private:
  const TiledPlan& plan_;
  simd::DotLevel level_;
  const bfloat16 *keys_ = nullptr, *values_ = nullptr;
  bool finite_values_ = true;
  AlignedVector<bfloat16> queries_;   // [rows, key_dim]
  std::vector<const bfloat16*> row_;  // of the tile being packed
  AlignedVector<bfloat16> rows_;      // [width, dim], where those are not contiguous
  AlignedVector<bfloat16> p_;         // [strip_rows, width]
};

}  // namespace chorale::tiled
