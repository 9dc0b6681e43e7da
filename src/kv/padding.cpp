#include "chorale/padding.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <new>

#include "base/float.h"
#include "kv/rows.h"

namespace chorale {
namespace {

std::byte* row_of(const Tensor& tensor, std::int64_t row, std::size_t row_bytes) {
  return static_cast<std::byte*>(tensor.view().data) + static_cast<std::size_t>(row) * row_bytes;
}

// Zeros of shape [leading..., the dimensions of `like` after its first `skipped`].
Result<Tensor> zeros(DType dtype, std::initializer_list<std::int64_t> leading, const TensorView& like,
                     int skipped) {
  std::vector<std::int64_t> shape(leading);
  shape.insert(shape.end(), like.shape.begin() + skipped, like.shape.begin() + like.rank);
  auto bytes = static_cast<std::int64_t>(size_of(dtype));
  bool fits = true;
  for (const std::int64_t size : shape) fits = fits && !__builtin_mul_overflow(bytes, size, &bytes);
  const auto exhausted = [&] {
    return Status::resource_exhausted(fmt::format("no memory for a result of {}",
                                                  TensorView::contiguous(nullptr, dtype, shape).describe()));
  };
  if (!fits) return exhausted();
  try {
    return Tensor::zeros(dtype, shape);
  } catch (const std::bad_alloc&) {
    return exhausted();
  }
}

Status check_index(std::int64_t index, std::size_t place, std::int64_t limit) {
  if (index >= 0 && index < limit) return Status::ok();
  return Status::out_of_range(fmt::format("indices[{}] is {}: there are {} rows", place, index, limit));
}

// Two rows in one place would lose one of them, and pad_input_backward would not be the backward.
Status check_distinct(std::span<const std::int64_t> indices, std::int64_t limit) {
  for (std::size_t i = 0; i < indices.size(); ++i) CHORALE_RETURN_IF_ERROR(check_index(indices[i], i, limit));
  std::vector<std::int64_t> sorted(indices.begin(), indices.end());
  std::ranges::sort(sorted);
  if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
    return Status::invalid_argument(fmt::format("indices has {} more than once: places must differ", *twice));
  return Status::ok();
}

// out[i] = rows[indices[i]], where the first `leading` dimensions of `input` count its rows.
Result<Tensor> gather(const TensorView& input, int leading, std::span<const std::int64_t> indices) {
  const RowReader reader(input, leading);
  for (std::size_t i = 0; i < indices.size(); ++i)
    CHORALE_RETURN_IF_ERROR(check_index(indices[i], i, reader.rows()));
  CHORALE_ASSIGN_OR_RETURN(Tensor out, zeros(input.dtype, {std::ssize(indices)}, input, leading));
  for (std::size_t i = 0; i < indices.size(); ++i)
    reader.copy(indices[i], row_of(out, static_cast<std::int64_t>(i), reader.row_bytes()));
  return out;
}

Status check_row_count(std::string_view name, const TensorView& view, std::span<const std::int64_t> indices) {
  CHORALE_RETURN_IF_ERROR(check_view(name, view, 1, TensorView::max_rank));
  if (view.shape[0] == std::ssize(indices)) return Status::ok();
  return Status::invalid_argument(fmt::format("{} has {} rows and there are {} indices: must be as many",
                                              name, view.shape[0], indices.size()));
}

}  // namespace

Result<Unpadded> unpad_input(const TensorView& padded, std::span<const std::uint8_t> attention_mask) {
  CHORALE_RETURN_IF_ERROR(check_view("padded", padded, 2, TensorView::max_rank));
  const std::int64_t batch = padded.shape[0], seqlen = padded.shape[1];
  std::int64_t places = 0;
  if (__builtin_mul_overflow(batch, seqlen, &places) || std::ssize(attention_mask) != places)
    return Status::invalid_argument(
        fmt::format("attention_mask has {} entries: must be {} * {}, as padded is {}", attention_mask.size(),
                    batch, seqlen, padded.describe()));
  Unpadded result;
  result.cu_seqlens.push_back(0);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t place = b * seqlen; place < (b + 1) * seqlen; ++place) {
      const std::uint8_t set = attention_mask[static_cast<std::size_t>(place)];
      if (set > 1)
        return Status::invalid_argument(
            fmt::format("attention_mask[{}, {}] is {}: must be 0 or 1", b, place - b * seqlen, set));
      if (set == 1) result.indices.push_back(place);
    }
    if (std::ssize(result.indices) > std::numeric_limits<std::int32_t>::max())
      return Status::out_of_range(
          fmt::format("attention_mask sets more than {} tokens", std::numeric_limits<std::int32_t>::max()));
    result.seqused.push_back(static_cast<std::int32_t>(std::ssize(result.indices)) -
                             result.cu_seqlens.back());
    result.max_seqlen = std::max(result.max_seqlen, result.seqused.back());
    result.cu_seqlens.push_back(static_cast<std::int32_t>(std::ssize(result.indices)));
  }
  CHORALE_ASSIGN_OR_RETURN(result.rows, gather(padded, 2, result.indices));
  return result;
}

Result<Tensor> pad_input(const TensorView& rows, std::span<const std::int64_t> indices, std::int64_t batch,
                         std::int64_t seqlen) {
  CHORALE_RETURN_IF_ERROR(check_row_count("rows", rows, indices));
  std::int64_t places = 0;
  if (rows.rank == TensorView::max_rank)
    return Status::invalid_argument(
        fmt::format("rows: rank {}: must be from 1 to {}", rows.rank, TensorView::max_rank - 1));
  if (batch < 0 || seqlen < 0 || __builtin_mul_overflow(batch, seqlen, &places))
    return Status::invalid_argument(fmt::format(
        "batch {} and seqlen {}: neither may be negative, nor their product beyond 64 bits", batch, seqlen));
  CHORALE_RETURN_IF_ERROR(check_distinct(indices, places));
  CHORALE_ASSIGN_OR_RETURN(Tensor padded, zeros(rows.dtype, {batch, seqlen}, rows, 1));
  const RowReader reader(rows);
  for (std::size_t i = 0; i < indices.size(); ++i)
    reader.copy(static_cast<std::int64_t>(i), row_of(padded, indices[i], reader.row_bytes()));
  return padded;
}

Result<Tensor> pad_input_backward(const TensorView& grad_padded, std::span<const std::int64_t> indices) {
  CHORALE_RETURN_IF_ERROR(check_view("grad_padded", grad_padded, 2, TensorView::max_rank));
  return gather(grad_padded, 2, indices);
}

Result<Tensor> index_first_axis(const TensorView& input, std::span<const std::int64_t> indices) {
  CHORALE_RETURN_IF_ERROR(check_view("input", input, 1, TensorView::max_rank));
  return gather(input, 1, indices);
}

Result<Tensor> index_first_axis_backward(const TensorView& grad, std::span<const std::int64_t> indices,
                                         std::int64_t n) {
  CHORALE_RETURN_IF_ERROR(check_row_count("grad", grad, indices));
  if (n < 0) return Status::invalid_argument(fmt::format("n {}: must not be negative", n));
  for (std::size_t i = 0; i < indices.size(); ++i) CHORALE_RETURN_IF_ERROR(check_index(indices[i], i, n));
  CHORALE_ASSIGN_OR_RETURN(const Tensor sums, zeros(DType::float32, {n}, grad, 1));
  const RowReader reader(grad);
  const std::int64_t width = reader.row_elements();
  std::vector<std::byte> row(reader.row_bytes());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    reader.copy(static_cast<std::int64_t>(i), row.data());
    float* sum = sums.as<float>().data() + indices[i] * width;
    for (std::int64_t j = 0; j < width; ++j) sum[j] += load_element(row.data(), grad.dtype, j);
  }
  if (grad.dtype == DType::float32) return sums;
  CHORALE_ASSIGN_OR_RETURN(Tensor out, zeros(grad.dtype, {n}, grad, 1));
  for (std::int64_t j = 0; j < sums.elements(); ++j)
    store_element(out.view().data, grad.dtype, j, sums.as<float>()[static_cast<std::size_t>(j)]);
  return out;
}

}  // namespace chorale
