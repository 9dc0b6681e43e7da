// Rows of a strided tensor, copied out one at a time: what storing into pages and unpadding have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// ok if the view is given, its shape and strides are not negative and its rank is in [min_rank, max_rank].
Status check_view(std::string_view name, const TensorView& view, int min_rank, int max_rank);

// The first `leading` dimensions of the view (0 to 2), counted row-major, are its rows; the others are a
// row's elements. With 0 the whole view is one row.
class RowReader {
 public:
  explicit RowReader(const TensorView& view, int leading = 1);

  std::int64_t rows() const { return rows_; }
  std::int64_t row_elements() const { return row_elements_; }
  std::size_t row_bytes() const { return static_cast<std::size_t>(row_elements_) * element_; }
  // Writes row `row` to `to`, without gaps: one memcpy where the row lies in one piece, else one for each
  // piece.
  void copy(std::int64_t row, std::byte* to) const;

 private:
  std::byte* copy_from(int dimension, const std::byte* from, std::byte* to) const;

  TensorView view_;
  int leading_;
  int piece_;            // dimensions from here on lie in one piece
  std::size_t element_;  // bytes
  std::size_t piece_bytes_;
  std::int64_t rows_ = 1, row_elements_ = 1;
};

}  // namespace chorale
