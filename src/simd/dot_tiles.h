// Matrix products of bfloat16 pairs into float32, on AMX or AVX-512 BF16.
//
// Both read the same operands:
//   left   [rows, inner]                 row-major, rows a multiple of 16, inner of 32
//   right  [inner / 2, columns, 2]       "pairs": two consecutive inner values of a column lie together
//   out    [rows, columns]               row-major float32, columns a multiple of 16
// An element's bits depend on its row of left and column of right alone. They differ between the two
// instruction sets, and from chains of float32 fused multiply-adds (docs/numerics.md).
#pragma once

#include <cstdint>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale::simd {

enum class DotLevel { none, avx512_bf16, amx };  // from the least to the best
// The best that this processor has. Asks the system for AMX's registers once.
DotLevel processor_dot_level();
// The best that this processor and CHORALE_SIMD allow.
DotLevel dot_level();

// AMX's tile registers, configured for this thread while the object lives. Needed around dot_product at
// DotLevel::amx; does nothing otherwise. Does not nest. All have 16 rows, or the last two `rows_of_last_two`.
class DotScope {
 public:
  explicit DotScope(DotLevel level, int rows_of_last_two = 16);
  ~DotScope();
  DotScope(const DotScope&) = delete;
  DotScope& operator=(const DotScope&) = delete;

 private:
  DotLevel level_;
};

struct DotShape {
  std::int64_t rows, columns, inner;
};
// left_row: elements from one row to the next. right_row: elements from one pair of inner values to the next,
// normally 2 * columns. out_row: floats.
void dot_product(DotLevel level, const DotShape& shape, const bfloat16* left, std::int64_t left_row,
                 const bfloat16* right, std::int64_t right_row, float* out, std::int64_t out_row,
                 bool accumulate);

// Packing into "pairs" with AVX-512 (DotLevel other than none): in[i] points at row i of `columns` elements.
// Rows and columns are padded with zeros up to the multiples given above. right[i / 2][j][i % 2] = in[i][j]:
// rows become the inner dimension.
void pack_pairs(const bfloat16* const* in, std::int64_t rows, std::int64_t columns, bfloat16* right,
                std::int64_t right_row);
// right[j / 2][i][j % 2] = in[i][j]: columns become the inner dimension.
void pack_pairs_transposed(const bfloat16* const* in, std::int64_t rows, std::int64_t columns,
                           bfloat16* right, std::int64_t right_row);

}  // namespace chorale::simd
