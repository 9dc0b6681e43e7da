// The products and exponentials of attention on AMX, in raw intrinsics. Everything lies in tiles of 1 KiB
// that the tile registers load whole.
//
// Scores are computed transposed, S^T = K Q^T: a key is a row, sixteen query rows are the lanes of a vector.
// So maxima and sums of a query row need no step across lanes, probabilities are already the right-hand
// operand of O^T = V^T P^T, and keys are the left-hand operand as they lie in memory.
//
//     strip   32 query rows: two groups of 16 lanes
//     slab    32 keys: what one step of a product over keys takes in
//
// Layouts, in tiles: a `left` tile is 16 rows of 32 inner values; a `right` tile is 16 pairs of inner values
// of 16 columns, as tdpbf16ps wants them.
//     queries  [dim / 32][2 groups]          right    inner: dimensions
//     keys     [dim / 32][2 halves]          left     inner: dimensions, rows: 16 keys
//     values   [dim / 16]                    left     inner: 32 keys, rows: 16 dimensions
//     scores   [2 groups][32 keys][16]       float32
//     p        [2 groups]                    right    inner: 32 keys
//     out      [dim / 16][2 groups][16][16]  float32, rows: 16 dimensions
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "chorale/tensor.h"
#include "implementations/cpu/mutants.h"

namespace chorale::tiled::amx {

inline constexpr std::int64_t group_rows = 16, strip_rows = 32, slab_keys = 32;
inline constexpr std::int64_t tile_elements = 512;  // of bfloat16; half as many of float32

constexpr std::int64_t padded(std::int64_t dim) { return (dim + 31) / 32 * 32; }
// Elements of one strip's queries, or of one slab's keys or values.
constexpr std::int64_t block_elements(std::int64_t dim) { return 32 * padded(dim); }
inline constexpr std::int64_t score_elements = strip_rows * slab_keys;

// rows[i] points at `dim` elements; what lies past `count` rows or `dim` elements becomes 0.
void pack_queries(const bfloat16* const* rows, std::int64_t count, std::int64_t dim, bfloat16* out);
void pack_keys(const bfloat16* const* rows, std::int64_t count, std::int64_t dim, bfloat16* out);
// Whether all values are finite.
bool pack_values(const bfloat16* const* rows, std::int64_t count, std::int64_t dim, bfloat16* out);

// The state of a strip's rows over some keys. p = 2^((score - reference) factor). A row's reference is the
// largest score that it had seen when it was last raised: of the first slab of which it sees something, and
// of those whose probabilities would else sum to more than most_sum.
struct alignas(64) Lanes {
  float reference[strip_rows], sum[strip_rows];
};
void clear(Lanes& lanes);
inline constexpr float most_sum = 256, no_bound = std::numeric_limits<float>::infinity();

// Rows of a strip, a bit each.
using Rows = std::uint32_t;
// Those without a reference.
Rows unseen(const Lanes& lanes);

// scores = keys queries^T for one slab.
void scores(const bfloat16* keys, const bfloat16* queries, std::int64_t dim, float* out);
// Sets scores to -inf where bit k of visible[row] is 0.
void hide(const std::uint32_t* visible, float* scores);
// Raises the references of `rows` to these scores, and rescales their sums. True if out must be multiplied by
// scales[strip_rows].
bool raise(const float* scores, float factor, Rows rows, Lanes& lanes, float* scales);
void rescale(const float* scales, std::int64_t dim, float* out);
// p of one slab into p, their sums into lanes; meanwhile the scores of the next slab, if next_keys is not
// null. Returns rows whose sum is above `most`: lanes are as they were then, and p is to be made again once
// their references are raised.
Rows softmax(const float* scores, float factor, float most, Lanes& lanes, bfloat16* p,
             const bfloat16* next_keys, const bfloat16* queries, std::int64_t dim, float* next_scores);
// out (+)= values^T p over `slabs` slabs: values[i] with the i-th of p.
void add_values(const bfloat16* const* values, std::int64_t slabs, const bfloat16* p, std::int64_t dim,
                float* out, bool accumulate);
// Takes later keys into a total.
void merge(const Lanes& later, const float* later_out, float factor, std::int64_t dim, Lanes& total,
           float* total_out);
// rows[strip_rows][padded(dim)] from out.
void unpack(const float* out, std::int64_t dim, float* rows);
// rows[i][dim] = out (1 / divisors[strip_rows]), rounded to bfloat16 once, for `count` rows; with one zero,
// +0. `past_caches`: whole lines go to memory without being read first; a fence before others read them.
void store_quotients(const float* out, const float* divisors, std::int64_t count, std::int64_t dim,
                     bool past_caches, bfloat16* const* rows);

// The same for up to 16 rows, where keys are not packed and values are paired as they lie:
//     scores   [32 keys][16]
//     values   [dim / 16]                 right    inner: 32 keys, columns: 16 dimensions
//     p                                   left     rows: 16 query rows
//     out      [dim / 16][16 rows][16]    float32
// The same products in the same order, and so the same bits: a tile product rounds an element by its row and
// column alone, whichever side they are on (tests/simd/dot_tiles_test.cpp). Tiles of p and out are registers
// 6 and 7, of no more rows than the scope says there are: out beyond them is not touched.
struct KeyTile {
  const bfloat16* rows;       // of 16 keys
  std::int64_t stride, step;  // elements from one key to the next, and from 32 dimensions to the next
};
// Memory to ask for while computing, some lines at each step, so that memory and arithmetic go on together.
class Prefetch {
 public:
  void clear() { ranges_.clear(), range_ = 0, at_ = end_ = nullptr, bytes_ = 0, lines_ = 0; }
  void add(const void* start, std::int64_t bytes) {
    const auto* first = static_cast<const std::byte*>(start);
    const std::byte* end = first + bytes;
    first -= reinterpret_cast<std::uintptr_t>(first) % line;
    bytes_ += end - first;
    if (!ranges_.empty() && ranges_.back().first < first && first <= ranges_.back().end)
      ranges_.back().end = end;
    else
      ranges_.push_back({first, end});
  }
  // What was added is asked for in `steps` steps.
  void spread(std::int64_t steps) { lines_ = bytes_ / line / steps + 1; }
  void step() { ask(lines_); }
  void ask_rest() { ask(bytes_); }

 private:
  static constexpr std::int64_t line = 64;
  void ask(std::int64_t lines) {
    for (; lines > 0; --lines, at_ += line) {
      if (at_ >= end_) {
        if (range_ == ranges_.size()) return;
        at_ = ranges_[range_].first, end_ = ranges_[range_++].end;
      }
      __builtin_prefetch(at_, 0, 2);
    }
  }

  struct Range {
    const std::byte *first, *end;
  };
  std::vector<Range> ranges_;
  std::size_t range_ = 0;
  const std::byte *at_ = nullptr, *end_ = nullptr;
  std::int64_t bytes_ = 0, lines_ = 0;
};
void pack_key_tile(const bfloat16* const* rows, std::int64_t count, std::int64_t dim, bfloat16* out);
// Whether all values are finite, or true if `check` is false.
bool pack_value_pairs(const bfloat16* const* rows, std::int64_t count, std::int64_t dim, bfloat16* out,
                      bool check, Prefetch& prefetch);
// Scores of `count` tiles.
void scores_of_few(const KeyTile* tiles, std::int64_t count, const bfloat16* queries, std::int64_t dim,
                   float* out, Prefetch& prefetch);
void hide_from_few(const std::uint32_t* visible, float* scores);
Rows unseen_of_few(const Lanes& lanes);
bool raise_few(const float* scores, float factor, Rows rows, Lanes& lanes, float* scales);
void rescale_few(const float* scales, std::int64_t dim, float* out);
Rows softmax_of_few(const float* scores, float factor, float most, Lanes& lanes, bfloat16* p,
                    Prefetch& prefetch);
void add_values_to_few(const bfloat16* const* values, std::int64_t slabs, const bfloat16* p, std::int64_t dim,
                       float* out, Prefetch& prefetch);
void merge_few(const Lanes& later, const float* later_out, float factor, std::int64_t dim, Lanes& total,
               float* total_out);

// ---- The backward pass, a strip and a slab at a time. Left forms of P^T and dS^T for products over query
// rows
// ([2 halves of the keys], rows: keys, inner: 32 query rows), a right form of dS^T for products over keys.

// In place: p = exp2(score * factor - lse) replaces the score, and p * (gradient - delta) the gradient of p.
// lse[strip_rows] in powers of two; +inf for a row that sees nothing.
void gradients(float* scores, float* grad_p, const float* lse, const float* delta, float factor);
// Rounds them. Hidden pairs are exactly 0, whatever a row's NaN made of them; visible is null where all are
// visible.
void round_gradients(const float* p, const float* grad_scores, const std::uint32_t* visible, bfloat16* p_left,
                     bfloat16* grad_left, bfloat16* grad_right);
// out += left right over `strips` strips: left[i] as above, right[i] from pack_value_pairs.
// out [2 halves][dim / 16][16 keys][16], float32.
void add_over_queries(const bfloat16* const* left, const bfloat16* const* right, std::int64_t strips,
                      std::int64_t dim, float* out);

}  // namespace chorale::tiled::amx
