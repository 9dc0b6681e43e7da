#include "implementations/views.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>

namespace chorale {
namespace {

std::string describe_wanted(const NamedView& tensor) {
  std::vector<std::string> extents;
  for (const std::int64_t extent : tensor.shape)
    extents.push_back(extent == any_extent ? "any" : std::to_string(extent));
  return fmt::format("{} [{}]", name(tensor.dtype), fmt::join(extents, ", "));
}

Status check_shape(const NamedView& tensor) {
  const TensorView& view = *tensor.view;
  if (view.rank < 0 || view.rank > TensorView::max_rank) {
    return Status::invalid_argument(
        fmt::format("{}: rank {}: must be from 0 to {}", tensor.name, view.rank, TensorView::max_rank));
  }
  bool fits = view.dtype == tensor.dtype && view.rank == static_cast<int>(tensor.shape.size());
  for (int i = 0; fits && i < view.rank; ++i) {
    const std::int64_t wanted = tensor.shape[static_cast<std::size_t>(i)];
    fits = wanted == any_extent ? view.shape[i] >= 0 : view.shape[i] == wanted;
  }
  if (fits) return Status::ok();
  return Status::invalid_argument(
      fmt::format("{} is {}: must be {}", tensor.name, view.describe(), describe_wanted(tensor)));
}

// Bytes from the first element's begin to the last one's end, over dimensions [first_dimension, rank); none
// if that passes 63 bits.
std::optional<std::int64_t> extent_bytes(const TensorView& view, int first_dimension = 0) {
  std::int64_t last = 0;
  for (int i = first_dimension; i < view.rank; ++i) {
    std::int64_t step = 0;
    if (__builtin_mul_overflow(view.shape[i] - 1, view.stride[i], &step)) return std::nullopt;
    if (__builtin_add_overflow(last, step, &last)) return std::nullopt;
  }
  std::int64_t bytes = 0;
  if (__builtin_add_overflow(last, std::int64_t{1}, &last)) return std::nullopt;
  if (__builtin_mul_overflow(last, static_cast<std::int64_t>(size_of(view.dtype)), &bytes))
    return std::nullopt;
  return bytes;
}

Status check_strides(const NamedView& tensor) {
  const TensorView& view = *tensor.view;
  for (int i = 0; i < view.rank; ++i) {
    if (view.stride[i] < 0) {
      return Status::invalid_argument(
          fmt::format("{}: stride {} of dimension {}: must not be negative", tensor.name, view.stride[i], i));
    }
  }
  if (!extent_bytes(view)) {
    return Status::out_of_range(
        fmt::format("{}: {} with these strides spans more than 2^63 bytes", tensor.name, view.describe()));
  }
  return Status::ok();
}

// Dimensions in ascending order of stride, each stepping over all that the smaller ones reach: no two
// elements meet.
Status check_writable(const NamedView& tensor) {
  const TensorView& view = *tensor.view;
  const int last = view.rank - 1;
  if (last >= 0 && view.shape[last] > 1 && view.stride[last] != 1) {
    return Status::invalid_argument(
        fmt::format("{}: stride {} of its last dimension: must be 1, since it is written", tensor.name,
                    view.stride[last]));
  }
  std::vector<int> order;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] > 1) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return view.stride[x] < view.stride[y]; });
  std::int64_t reach = 1;  // elements from the first to the last that smaller dimensions touch, both counted
  for (const int i : order) {
    if (view.stride[i] < reach) {
      return Status::invalid_argument(fmt::format(
          "{}: stride {} of dimension {}: must be at least {}, since it is written and elements may not meet",
          tensor.name, view.stride[i], i, reach));
    }
    reach += (view.shape[i] - 1) * view.stride[i];
  }
  return Status::ok();
}

std::uintptr_t address(const TensorView& view) { return reinterpret_cast<std::uintptr_t>(view.data); }

// Both step from row to row by the same distance, and within that distance each keeps to a range of its own.
bool interleaved(const TensorView& x, const TensorView& y) {
  if (x.rank < 1 || y.rank < 1) return false;
  const auto step_of = [](const TensorView& view) {
    return view.stride[0] * static_cast<std::int64_t>(size_of(view.dtype));
  };
  const std::int64_t step = step_of(x);
  const std::int64_t x_bytes = *extent_bytes(x, 1), y_bytes = *extent_bytes(y, 1);
  if (step != step_of(y) || step <= 0 || x_bytes > step || y_bytes > step) return false;
  const bool x_first = address(x) <= address(y);
  const auto distance = x_first ? address(y) - address(x) : address(x) - address(y);
  const auto offset = static_cast<std::int64_t>(distance % static_cast<std::uintptr_t>(step));
  return (x_first ? x_bytes : y_bytes) <= offset && offset + (x_first ? y_bytes : x_bytes) <= step;
}

bool may_meet(const TensorView& x, const TensorView& y) {
  if (x.elements() == 0 || y.elements() == 0) return false;
  const auto x_end = address(x) + static_cast<std::uintptr_t>(*extent_bytes(x));
  const auto y_end = address(y) + static_cast<std::uintptr_t>(*extent_bytes(y));
  if (x_end <= address(y) || y_end <= address(x)) return false;
  return !interleaved(x, y);
}

}  // namespace

Status check_view(const NamedView& tensor) {
  const TensorView& view = *tensor.view;
  const bool has_elements = view.elements() != 0;
  if (view.empty() && has_elements) {
    return Status::invalid_argument(fmt::format("{}: must be given", tensor.name));
  }
  CHORALE_RETURN_IF_ERROR(check_shape(tensor));
  if (!has_elements) return Status::ok();
  CHORALE_RETURN_IF_ERROR(check_strides(tensor));
  if (const auto bytes = size_of(view.dtype); address(view) % bytes != 0) {
    return Status::invalid_argument(fmt::format("{}: its data is not aligned to the {} bytes of {}",
                                                tensor.name, bytes, name(view.dtype)));
  }
  return tensor.access == Access::write ? check_writable(tensor) : Status::ok();
}

Status check_disjoint(std::span<const NamedView> tensors) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (std::size_t j = i + 1; j < tensors.size(); ++j) {
      const NamedView &x = tensors[i], &y = tensors[j];
      if (x.access == Access::read && y.access == Access::read) continue;
      if (!may_meet(*x.view, *y.view)) continue;
      const bool x_is_written = x.access == Access::write;
      return Status::invalid_argument(fmt::format("{} is written, so it may not share memory with {}",
                                                  (x_is_written ? x : y).name, (x_is_written ? y : x).name));
    }
  }
  return Status::ok();
}

}  // namespace chorale
