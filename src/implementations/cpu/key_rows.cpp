#include "implementations/cpu/key_rows.h"

#include <algorithm>
#include <cstring>

#include "base/float.h"
#include "simd/simd.h"

namespace chorale::tiled {

namespace {

void prefetch(const std::byte* from, std::int64_t bytes) {
  constexpr std::int64_t line = 64;
  for (std::int64_t offset = 0; offset < bytes; offset += line) __builtin_prefetch(from + offset, 0, 2);
  __builtin_prefetch(from + bytes - 1, 0, 2);  // where rows do not start with a line
}

}  // namespace

void load_row(const std::byte* from, DType dtype, std::int64_t stride, std::int64_t count, float* to) {
  if (stride == 1) return simd::to_float(from, dtype, to, count);
  for (std::int64_t i = 0; i < count; ++i) to[i] = load_element(from, dtype, i * stride);
}

void load_row(const std::byte* from, DType, std::int64_t stride, std::int64_t count, bfloat16* to) {
  const auto* elements = reinterpret_cast<const bfloat16*>(from);
  if (stride == 1)
    std::memcpy(to, elements, static_cast<std::size_t>(count) * sizeof(bfloat16));
  else
    for (std::int64_t i = 0; i < count; ++i) to[i] = elements[i * stride];
}

KeyRows::KeyRows(const TiledPlan& plan, const TensorView& tensor, const TensorView& scales, int sequence,
                 int kv_head, bool is_value)
    : dtype_(tensor.dtype),
      computed_(plan.problem().dtype),
      scale_(scales.empty() ? 0 : load_element(scales.data, scales.dtype, kv_head * scales.stride[0])),
      dim_(tensor.shape[tensor.rank - 1]),
      dim_stride_(tensor.stride[tensor.rank - 1]),
      keys_(plan.keys(sequence)),
      swap_pages_(is_mutant(plan.mutant(), Mutant::swap_value_pages) && is_value) {
  const Batch& batch = plan.batch();
  const auto bytes = static_cast<std::int64_t>(size_of(dtype_));
  const auto* data = static_cast<const std::byte*>(tensor.data);
  if (batch.is_paged()) {
    head_stride_ = tensor.stride[2] * bytes;
    base_ = data + kv_head * head_stride_;
    page_stride_ = tensor.stride[0] * bytes;
    row_stride_ = tensor.stride[1] * bytes;
    pages_ = batch.block_table.data() + sequence * batch.block_table_stride;
    page_size_ = batch.page_size;
  } else {
    head_stride_ = tensor.stride[1] * bytes;
    row_stride_ = tensor.stride[0] * bytes;
    base_ = data + batch.cu_seqlens_k[sequence] * row_stride_ + kv_head * head_stride_;
  }
}

const std::byte* KeyRows::row(std::int64_t position) const {
  if (pages_ == nullptr) return base_ + position * row_stride_;
  std::int64_t page = position / page_size_;
  if (swap_pages_ && page < 2 && keys_ > page_size_) page = 1 - page;
  return base_ + pages_[page] * page_stride_ + position % page_size_ * row_stride_;
}

// A page at a time: a division for each row would cost more than the row.
void KeyRows::addresses(std::int64_t first, std::int64_t count, const std::byte** rows) const {
  for (std::int64_t i = 0; i < count;) {
    const std::byte* start = row(first + i);
    const std::int64_t run =
        pages_ == nullptr ? count - i : std::min(count - i, page_size_ - (first + i) % page_size_);
    for (std::int64_t end = i + run; i < end; ++i, start += row_stride_) rows[i] = start;
  }
}

void KeyRows::locate(std::int64_t first, std::int64_t count, const bfloat16** out, bfloat16* scratch) const {
  constexpr std::int64_t most = 64;
  const std::byte* next[most];
  const std::int64_t ahead = std::min({count, most, std::max<std::int64_t>(keys_ - first - count, 0)});
  addresses(first + count, ahead, next);
  for (std::int64_t i = 0; i < ahead; ++i) prefetch(next[i], row_bytes());
  rows(first, count, out, scratch);
}

void KeyRows::rows(std::int64_t first, std::int64_t count, const bfloat16** out, bfloat16* scratch) const {
  addresses(first, count, reinterpret_cast<const std::byte**>(out));
  if (is_direct()) return;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto* from = reinterpret_cast<const std::byte*>(out[i]);
    bfloat16* gathered = scratch + i * dim_;
    out[i] = gathered;
    if (scale_ == 0) {
      load_row(from, dtype_, dim_stride_, dim_, gathered);
    } else {
      float values[Problem::max_head_dim];
      load_row(from, dtype_, dim_stride_, dim_, values);
      dequantise(values);
      simd::from_float(values, DType::bfloat16, gathered, dim_);  // exact: they have been rounded
    }
  }
}

DType KeyRows::typed_rows(std::int64_t first, std::int64_t count, const std::byte** out,
                          float* scratch) const {
  addresses(first, count, out);
  if (is_direct()) return dtype_;
  for (std::int64_t i = 0; i < count; ++i) {
    float* converted = scratch + i * dim_;
    load_row(out[i], dtype_, dim_stride_, dim_, converted);
    if (scale_ != 0) dequantise(converted);
    out[i] = reinterpret_cast<const std::byte*>(converted);
  }
  return DType::float32;
}

void KeyRows::load(std::int64_t first, std::int64_t count, float* out, std::int64_t out_row) const {
  for (std::int64_t i = 0; i < count; ++i) {
    if (first + count + i < keys_)
      prefetch(row(first + count + i), dim_ * static_cast<std::int64_t>(size_of(dtype_)));
    load_row(row(first + i), dtype_, dim_stride_, dim_, out + i * out_row);
    if (scale_ != 0) dequantise(out + i * out_row);
  }
}

// As kv/quantise.h says.
void KeyRows::dequantise(float* row) const {
  simd::scale(row, scale_, dim_);
  if (computed_ == DType::float32) return;
  std::uint16_t rounded[Problem::max_head_dim];
  simd::from_float(row, computed_, rounded, dim_);
  simd::to_float(rounded, computed_, row, dim_);
}

}  // namespace chorale::tiled
