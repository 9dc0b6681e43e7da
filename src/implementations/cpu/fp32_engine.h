// Products of float32 chains: every type and every processor with AVX2.
//
// An engine loads a query block and a key tile in the form that its products want, computes scores, and
// multiplies probabilities with values. Its order of arithmetic is named by `arithmetic`.
#pragma once

#include <vector>

#include "base/aligned.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/score_tile.h"
#include "simd/product.h"
#include "simd/simd.h"

namespace chorale::tiled {

class Fp32Engine {
 public:
  using Element = float;  // of packed keys and values
  static constexpr std::int64_t width = tile_keys;
  static constexpr bool takes_few_rows = false;   // fp32_few.cpp does
  static constexpr std::int64_t strip_rows = 48;  // rows whose scores stay in the first-level cache
  static constexpr std::int64_t partial_rows = 12, partial_keys = 16;  // where the mask hides some of them

  explicit Fp32Engine(const TiledPlan& plan);

  struct Scope {};
  Scope scope() const { return {}; }

  // Sizes of one packed tile, in Elements.
  static std::int64_t key_elements(const Problem& problem) { return problem.head_dim * width; }
  static std::int64_t value_elements(const Problem& problem) {
    return width * simd::round_up(problem.value_dim());
  }
  // Packs `count` rows from position `first` on.
  void pack_keys(const KeyRows& keys, std::int64_t first, std::int64_t count, float* packed);
  void pack_values(const KeyRows& values, std::int64_t first, std::int64_t count, float* packed);

  void load_queries(const QueryBlock& block, const TensorView& q);
  void use(const float* keys, const float* values, bool finite_values) {
    keys_ = keys, values_ = values, finite_values_ = finite_values;
    next_keys_ = next_values_ = nullptr;
  }
  // The tile after the one in use: products of `rows` rows in all ask the memory for it.
  void ask_for(const float* keys, const float* values, std::int64_t rows) {
    next_keys_ = keys, next_values_ = values, rows_to_come_ = rows;
  }

  void scores(ScoreTile& tile);
  void softmax(ScoreTile& tile, const float* before, simd::RowSoftmax* to) {
    simd::softmax_rows(tile.data(), width, tile.rows(), tile.count(), before, tile.log2_factor(), to);
  }
  void accumulate(ScoreTile& tile, float* out, std::int64_t out_row);

 private:
  const TiledPlan& plan_;
  // A strip's share of a tile of `elements`, from `next` on.
  void ask_for_share(const ScoreTile& tile, const float* next, std::int64_t elements,
                     simd::ProductArguments& product) const;

  const float *keys_ = nullptr, *values_ = nullptr, *next_keys_ = nullptr, *next_values_ = nullptr;
  std::int64_t rows_to_come_ = 0;
  bool finite_values_ = true;
  AlignedVector<float> queries_, rows_;
};

}  // namespace chorale::tiled
