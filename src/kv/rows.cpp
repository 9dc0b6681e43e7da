#include "kv/rows.h"

#include <fmt/format.h>

#include <cstring>

namespace chorale {

Status check_view(std::string_view name, const TensorView& view, int min_rank, int max_rank) {
  if (view.rank < min_rank || view.rank > max_rank)
    return Status::invalid_argument(
        fmt::format("{}: rank {}: must be from {} to {}", name, view.rank, min_rank, max_rank));
  std::int64_t bytes = size_of(view.dtype);
  bool fits = true;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] < 0 || view.stride[i] < 0)
      return Status::invalid_argument(
          fmt::format("{}: dimension {} has size {} and stride {}: neither may be negative", name, i,
                      view.shape[i], view.stride[i]));
    fits =
        fits && !__builtin_mul_overflow(bytes, view.shape[i], &bytes);  // strides of 0 make any size possible
  }
  if (!fits)
    return Status::invalid_argument(
        fmt::format("{}: {} has more bytes than can be counted", name, view.describe()));
  if (view.empty() && bytes != 0)
    return Status::invalid_argument(fmt::format("{}: no data for {}", name, view.describe()));
  return Status::ok();
}

RowReader::RowReader(const TensorView& view, int leading)
    : view_(view), leading_(leading), piece_(view.rank), element_(size_of(view.dtype)) {
  for (int i = 0; i < leading_; ++i) rows_ *= view.shape[i];
  for (int i = leading_; i < view.rank; ++i) row_elements_ *= view.shape[i];
  std::int64_t step = 1;
  for (; piece_ > leading_; --piece_) {
    const int inner = piece_ - 1;
    if (view.shape[inner] != 1 && view.stride[inner] != step) break;
    step *= view.shape[inner];
  }
  piece_bytes_ = static_cast<std::size_t>(step) * element_;
}

void RowReader::copy(std::int64_t row, std::byte* to) const {
  std::int64_t offset = 0;
  for (int i = leading_ - 1; i >= 0; --i) {
    offset += row % view_.shape[i] * view_.stride[i];
    row /= view_.shape[i];
  }
  copy_from(leading_,
            static_cast<const std::byte*>(view_.data) + offset * static_cast<std::int64_t>(element_), to);
}

std::byte* RowReader::copy_from(int dimension, const std::byte* from, std::byte* to) const {
  if (dimension == piece_) {
    std::memcpy(to, from, piece_bytes_);
    return to + piece_bytes_;
  }
  const std::int64_t step = view_.stride[dimension] * static_cast<std::int64_t>(element_);
  for (std::int64_t i = 0; i < view_.shape[dimension]; ++i)
    to = copy_from(dimension + 1, from + i * step, to);
  return to;
}

}  // namespace chorale
