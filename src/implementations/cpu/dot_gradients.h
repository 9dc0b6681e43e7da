// The backward pass's products of bfloat16 pairs (simd/dot_tiles.h). P and dS are rounded to bfloat16.
//
// Which operand is on which side, so that everything large is packed once:
//     scores   = Q  K^T     Q rows              K packed by dimensions, once a key tile
//     grad_P   = dO V^T     dO rows             V packed by dimensions
//     grad_Q   = dS K       dS rows             K packed by keys
//     grad_V^T = dO^T P     dO columns as rows  P packed by queries, as it is made
//     grad_K^T = Q^T dS     Q columns as rows   dS packed by queries
// Rows of Q and dO and their transposes are packed once for all key tiles (Queries).
#pragma once

#include <limits>
#include <vector>

#include "base/aligned.h"
#include "implementations/cpu/plan.h"
#include "implementations/cpu/score_tile.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale::tiled {

class DotGradients {
 public:
  static constexpr std::int64_t width = tile_keys;
  static constexpr std::int64_t row_step =
      std::numeric_limits<std::int64_t>::max();  // blocks are packed whole
  using Elements = AlignedVector<bfloat16>;

  // A [rows, dim] matrix of a block as both sides need it, padded with zeros.
  struct BlockMatrix {
    const bfloat16* rows;        // [most_rows_padded, dim padded to 32]
    const bfloat16* transposed;  // [dim padded to 16, most_rows_padded]
  };
  class Queries {
   public:
    Queries(const TiledPlan& plan, const BackwardTensors& tensors) : plan_(plan), tensors_(tensors) {}
    // Makes room for a sequence's blocks of some KV heads; those of before are gone.
    void hold(int sequence, int first_head, int heads);
    void prepare(const QueryBlock& block);  // from any thread, once a block
    BlockMatrix queries(const QueryBlock& block) const {
      return matrix(queries_, block, plan_.problem().head_dim);
    }
    BlockMatrix grad_outs(const QueryBlock& block) const {
      return matrix(grad_outs_, block, plan_.problem().value_dim());
    }

   private:
    struct Store {
      Elements rows, transposed;
    };
    void resize(Store& store, std::int64_t blocks, std::int64_t dim) const;
    std::int64_t slot(const QueryBlock& block) const {
      return (block.kv_head - first_head_) * plan_.block_count(block.sequence) + block.index;
    }
    void fill(Store& store, const QueryBlock& block, const TensorView& tensor, std::int64_t dim);
    BlockMatrix matrix(const Store& store, const QueryBlock& block, std::int64_t dim) const;

    const TiledPlan& plan_;
    const BackwardTensors& tensors_;
    int first_head_ = 0;
    Store queries_, grad_outs_;
  };

  DotGradients(const TiledPlan& plan, const BackwardTensors& tensors);
  DotGradients(const DotGradients&) = delete;  // holds pointers to its own rows

  std::int64_t key_row() const { return key_row_; }
  // Must live around everything below.
  simd::DotScope scope() const { return simd::DotScope(level_); }

  void load_keys(int sequence, int kv_head, std::int64_t first, std::int64_t count);
  void load_queries(const Queries& all, const QueryBlock& block, std::int64_t first_row);
  void scores(ScoreTile& tile);
  void grad_probabilities(ScoreTile& tile, float* out);
  void take(ScoreTile& tile, const float* grad_scores);
  void clear_grad_keys();
  void add_grad_keys(ScoreTile& tile);
  void add_grad_queries(ScoreTile& tile, float* grad_queries);
  void finish_grad_keys();
  float* grad_key(std::int64_t j) { return grad_keys_.data() + j * key_row_; }
  float* grad_value(std::int64_t j) { return grad_values_.data() + j * value_row_; }

 private:
  void add_transposed(ScoreTile& tile, const BlockMatrix& left, const Elements& right, std::int64_t dim,
                      float* out);

  const TiledPlan& plan_;
  const BackwardTensors& tensors_;
  simd::DotLevel level_;
  std::int64_t rows_;                     // most_rows_padded
  std::int64_t key_row_, value_row_;      // dimensions padded to 16
  std::int64_t key_inner_, value_inner_;  // dimensions padded to 32
  BlockMatrix queries_{}, grad_outs_{};   // of the block
  std::vector<const bfloat16*> row_;      // of the tile being packed
  Elements tile_rows_;                    // [width, dim], where those are not contiguous
  Elements keys_by_dim_, keys_by_key_, values_by_dim_;
  Elements p_, grad_scores_;                                            // [rows, width]
  std::vector<const bfloat16*> p_row_, grad_score_row_;                 // their rows
  Elements p_by_query_, grad_scores_by_query_;                          // packed
  AlignedVector<float> grad_keys_transposed_, grad_values_transposed_;  // [dim, width]
  AlignedVector<float> grad_keys_, grad_values_;                        // [width, dim], at the end of a tile
};

}  // namespace chorale::tiled
