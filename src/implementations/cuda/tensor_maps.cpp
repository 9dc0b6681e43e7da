#include "implementations/cuda/tensor_maps.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace chorale::cuda {
namespace {

constexpr std::int64_t alignment = 16;  // bytes

int element_type(DType dtype) {
  if (dtype == DType::bfloat16) return driver_constants::tensor_bfloat16;
  return dtype == DType::float16 ? driver_constants::tensor_float16 : driver_constants::tensor_uint8;
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
  const auto rank = static_cast<std::uint32_t>(view.rank);
  std::uint64_t sizes[TensorView::max_rank], strides[TensorView::max_rank];
  std::uint32_t boxes[TensorView::max_rank], steps[TensorView::max_rank];
  std::uint64_t whole = size_of(view.dtype);  // a stride that can stand where nothing is strided
  for (std::uint32_t i = 0; i < rank; ++i) {
    const auto from = static_cast<std::size_t>(view.rank) - 1 - i;
    sizes[i] = static_cast<std::uint64_t>(std::max<std::int64_t>(view.shape[from], 1));
    if (i > 0) {
      // A dimension of one element has any stride.
      const bool strided = view.shape[from] > 1 && view.elements() > 0;
      strides[i - 1] = strided ? static_cast<std::uint64_t>(view.stride[from]) * size_of(view.dtype)
                               : (whole + alignment - 1) / alignment * alignment;
    }
    whole = (i == 0 ? size_of(view.dtype) : strides[i - 1]) * sizes[i];
    boxes[i] = static_cast<std::uint32_t>(box[i]);
    steps[i] = 1;
  }
  // Of an empty tensor nothing is read, wherever it lies.
  auto* address =
      reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(view.data) / alignment * alignment);
  alignas(128) kernels::TensorMap map;
  CHORALE_RETURN_IF_ERROR(
      driver.check(driver.encode_tensor_map(&map, element_type(view.dtype), rank, address, sizes, strides,
                                            boxes, steps, 0, driver_constants::tensor_swizzle_128,
                                            driver_constants::tensor_promotion_l2_256, 0),
                   fmt::format("a tensor map of {} ({})", name, view.describe())));
  return map;
}

}  // namespace chorale::cuda
