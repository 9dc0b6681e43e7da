// The backward pass's products as float32 chains. Hidden pairs are left out of every sum.
#pragma once

#include <vector>

#include "base/aligned.h"
#include "implementations/cpu/plan.h"
#include "implementations/cpu/score_tile.h"
#include "simd/product.h"
#include "simd/simd.h"

namespace chorale::tiled {

class Fp32Gradients {
 public:
  static constexpr std::int64_t width = tile_keys;
  static constexpr std::int64_t row_step = 32;  // rows of a block that may be left out together

  // Rows of blocks as float32, for all key tiles.
  class Queries {
   public:
    Queries(const TiledPlan& plan, const BackwardTensors& tensors);
    // Makes room for a sequence's blocks of some KV heads; those of before are gone.
    void hold(int sequence, int first_head, int heads);
    void prepare(const QueryBlock& block);  // from any thread, once a block
    const float* queries(const QueryBlock& block) const { return queries_.data() + row(block) * key_row_; }
    const float* grad_outs(const QueryBlock& block) const {
      return grad_outs_.data() + row(block) * value_row_;
    }

   private:
    std::int64_t row(const QueryBlock& block) const {
      return (block.kv_head - first_head_) * plan_.sequence_rows(block.sequence) +
             block.first * plan_.problem().group_size();
    }

    const TiledPlan& plan_;
    const BackwardTensors& tensors_;
    std::int64_t key_row_, value_row_;  // padded dimensions
    int first_head_ = 0;
    AlignedVector<float> queries_, grad_outs_;
  };

  Fp32Gradients(const TiledPlan& plan, const BackwardTensors& tensors);

  struct Scope {};
  Scope scope() const { return {}; }
  std::int64_t key_row() const { return key_row_; }  // floats from one row of grad_queries to the next

  void load_keys(int sequence, int kv_head, std::int64_t first, std::int64_t count);
  void load_queries(const Queries& all, const QueryBlock& block, std::int64_t first_row);
  void scores(ScoreTile& tile);
  void grad_probabilities(ScoreTile& tile, float* out);  // grad_out . v, laid out as the tile is
  void take(ScoreTile& tile, const float* grad_scores);  // P is in the tile: what the sums below are made of
  void clear_grad_keys();
  void add_grad_keys(ScoreTile& tile);  // grad_V and grad_K of the loaded keys
  void add_grad_queries(ScoreTile& tile, float* grad_queries);
  void finish_grad_keys() {}
  float* grad_key(std::int64_t j) { return grad_keys_.data() + j * key_row_; }
  float* grad_value(std::int64_t j) { return grad_values_.data() + j * value_row_; }

 private:
  static void multiply_keys(const ScoreTile& tile, const float* left, std::int64_t left_row, std::int64_t dim,
                            const AlignedVector<float>& right, float* out);
  static void add(const ScoreTile& tile, const simd::ProductArguments& product, std::int64_t b_elements);

  const TiledPlan& plan_;
  const BackwardTensors& tensors_;
  std::int64_t key_row_, value_row_;                       // padded dimensions
  const float *queries_ = nullptr, *grad_outs_ = nullptr;  // of the block
  AlignedVector<float> keys_, keys_transposed_, key_panels_, values_, values_transposed_;
  AlignedVector<float> grad_keys_, grad_values_;
  const float* grad_scores_ = nullptr;
};

}  // namespace chorale::tiled
