#include "implementations/cuda/tensor_maps.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace chorale::cuda {
namespace {

constexpr std::int64_t alignment = 16;  // bytes

int element_type(DType dtype) {
  if (dtype == DType::bfloat16) return driver_constants::tensor_bfloat16;
  return dtype == DType::float16 ? driver_constants::tensor_float16 : driver_constants::tensor_uint8;
}

struct Dimension {
  std::uint64_t size, stride;  // in bytes
  std::uint32_t box = 1;
};
using Dimensions = std::vector<Dimension>;  // the contiguous one first

Dimensions dimensions_of(const TensorView& view) {
  Dimensions dimensions;
  std::uint64_t whole = size_of(view.dtype);  // a stride that can stand where nothing is strided
  for (int i = view.rank - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    // A dimension of one element has any stride.
    const bool strided = view.shape[at] > 1 && view.elements() > 0;
    Dimension d{static_cast<std::uint64_t>(std::max<std::int64_t>(view.shape[at], 1)), whole};
    if (i + 1 < view.rank)
      d.stride = strided ? static_cast<std::uint64_t>(view.stride[at]) * size_of(view.dtype)
                         : (whole + alignment - 1) / alignment * alignment;
    whole = d.stride * d.size;
    dimensions.push_back(d);
  }
  return dimensions;
}

Result<kernels::TensorMap> encode(const Driver& driver, std::string_view name, const TensorView& view,
                                  const Dimensions& dimensions) {
  constexpr std::size_t most = 5;
  std::uint64_t sizes[most], strides[most];
  std::uint32_t boxes[most], steps[most];
  for (std::size_t i = 0; i < dimensions.size(); ++i) {
    sizes[i] = dimensions[i].size;
    if (i > 0) strides[i - 1] = dimensions[i].stride;
    boxes[i] = dimensions[i].box;
    steps[i] = 1;
  }
  // Of an empty tensor nothing is read, wherever it lies.
  auto* address =
      reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(view.data) / alignment * alignment);
  alignas(128) kernels::TensorMap map;
  // The L2 cache is to fetch lines of 128 bytes, as boxes have them: pairs cost a decode 5% of its bandwidth.
  CHORALE_RETURN_IF_ERROR(driver.check(
      driver.encode_tensor_map(&map, element_type(view.dtype), static_cast<std::uint32_t>(dimensions.size()),
                               address, sizes, strides, boxes, steps, 0, driver_constants::tensor_swizzle_128,
                               driver_constants::tensor_promotion_l2_128, 0),
      fmt::format("a tensor map of {} ({})", name, view.describe())));
  return map;
}

}  // namespace

Status check_alignment(std::string_view name, const TensorView& view) {
  if (view.elements() == 0) return Status::ok();  // nothing is read
  const auto size = static_cast<std::int64_t>(size_of(view.dtype));
  if (reinterpret_cast<std::uintptr_t>(view.data) % alignment != 0)
    return Status::unsupported(
        fmt::format("{}: its address must be a multiple of {} bytes", name, alignment));
  if (view.stride[view.rank - 1] != 1 && view.shape[view.rank - 1] > 1)
    return Status::unsupported(
        fmt::format("{}: its last stride is {}: must be 1", name, view.stride[view.rank - 1]));
  for (int i = 0; i + 1 < view.rank; ++i)
    if (view.shape[i] > 1 && (view.stride[i] == 0 || view.stride[i] * size % alignment != 0))
      return Status::unsupported(
          fmt::format("{}: stride {} of dimension {} is {} bytes: must be a multiple of {} above 0", name,
                      view.stride[i], i, view.stride[i] * size, alignment));
  return Status::ok();
}

Result<kernels::TensorMap> tensor_map(const Driver& driver, std::string_view name, const TensorView& view,
                                      std::span<const int> box) {
  Dimensions dimensions = dimensions_of(view);
  for (std::size_t i = 0; i < dimensions.size(); ++i) dimensions[i].box = static_cast<std::uint32_t>(box[i]);
  return encode(driver, name, view, dimensions);
}

Result<kernels::TensorMap> column_blocks_map(const Driver& driver, std::string_view name,
                                             const TensorView& pages, int slots, int blocks) {
  constexpr std::uint64_t block = 64;
  Dimensions d = dimensions_of(pages);  // columns, heads, slots, pages
  const Dimension columns{block, d[0].stride, block};
  const Dimension column_blocks{d[0].size / block, block * d[0].stride, static_cast<std::uint32_t>(blocks)};
  d[2].box = static_cast<std::uint32_t>(slots);
  return encode(driver, name, pages, {columns, d[2], column_blocks, d[1], d[3]});
}

}  // namespace chorale::cuda
