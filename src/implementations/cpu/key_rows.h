// The loader: where a sequence's keys or values lie, packed or paged, and how rows of them become float32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chorale/tensor.h"
#include "implementations/cpu/plan.h"

namespace chorale::tiled {

// `count` elements at `from`, `stride` elements apart: converted, or as they are where they are bfloat16.
void load_row(const std::byte* from, DType dtype, std::int64_t stride, std::int64_t count, float* to);
void load_row(const std::byte* from, DType dtype, std::int64_t stride, std::int64_t count, bfloat16* to);

// Keys or values of one sequence and KV head, by logical position.
class KeyRows {
 public:
  // `tensor`: packed [S, kv_heads, dim] or pages [pages, page_size, kv_heads, dim]; codes where `scales`
  // [kv_heads] is not empty.
  KeyRows(const TiledPlan& plan, const TensorView& tensor, const TensorView& scales, int sequence,
          int kv_head, bool is_value);

  std::int64_t dim() const { return dim_; }
  std::int64_t keys() const { return keys_; }
  // Rows of positions [first, first + count) to out, out_row floats apart.
  void load(std::int64_t first, std::int64_t count, float* out, std::int64_t out_row) const;
  // Where rows of positions [first, first + count) of a bfloat16 problem lie: in the tensor, or gathered in
  // `scratch` [count, dim] if their elements are codes or not contiguous there. Asks the memory for as many
  // rows after them.
  void locate(std::int64_t first, std::int64_t count, const bfloat16** rows, bfloat16* scratch) const;
  // The same without asking for more.
  void rows(std::int64_t first, std::int64_t count, const bfloat16** rows, bfloat16* scratch) const;
  // The same of a problem of any type; of float32 where they are gathered. Returns their type.
  DType typed_rows(std::int64_t first, std::int64_t count, const std::byte** rows, float* scratch) const;
  // Where the rows lie in the tensor.
  void addresses(std::int64_t first, std::int64_t count, const std::byte** rows) const;
  std::int64_t row_bytes() const { return dim_ * static_cast<std::int64_t>(size_of(dtype_)); }
  // Whether rows() finds rows in the tensor.
  bool is_direct() const { return dim_stride_ == 1 && scale_ == 0; }
  // From a row to the same position's under the next KV head.
  std::int64_t head_bytes() const { return head_stride_; }

 private:
  const std::byte* row(std::int64_t position) const;
  void dequantise(float* row) const;

  const std::byte* base_;
  DType dtype_;
  DType computed_;   // what codes are rounded to
  float scale_ = 0;  // of codes; 0: not codes
  std::int64_t dim_, dim_stride_;
  std::int64_t page_stride_ = 0, row_stride_, head_stride_;  // in bytes
  const std::int32_t* pages_ = nullptr;                      // of this sequence; none where packed
  std::int64_t page_size_ = 0;
  std::int64_t keys_;  // of the sequence
  bool swap_pages_;
};

}  // namespace chorale::tiled
