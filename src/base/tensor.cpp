#include "chorale/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace chorale {

std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
    case DType::float8_e4m3:
      return "float8_e4m3";
  }
  return "unknown";
}

Result<DType> parse_dtype(std::string_view text) {
  if (text == "float32" || text == "fp32") return DType::float32;
  if (text == "bfloat16" || text == "bf16") return DType::bfloat16;
  if (text == "float16" || text == "fp16") return DType::float16;
  if (text == "float8_e4m3" || text == "fp8_e4m3") return DType::float8_e4m3;
  return Status::invalid_argument(
      fmt::format("dtype '{}': must be float32, bfloat16, float16 or float8_e4m3", text));
}

namespace {

// Shapes that nobody can hold are met while they are being refused: their sizes stay at the largest number.
std::int64_t saturating_product(std::int64_t x, std::int64_t y) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(x, y, &product) ? std::numeric_limits<std::int64_t>::max() : product;
}

}  // namespace

TensorView TensorView::contiguous(const void* data, DType dtype, std::span<const std::int64_t> shape) {
  TensorView view;
  view.data = const_cast<void*>(data);
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::int64_t step = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = shape[i];
    view.stride[i] = step;
    step = saturating_product(step, shape[i]);
  }
  return view;
}

std::int64_t TensorView::elements() const {
  std::int64_t product = 1;
  for (int i = 0; i < rank; ++i) product = saturating_product(product, shape[i]);
  return product;
}

bool TensorView::is_contiguous() const {
  std::int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != step) return false;
    step = saturating_product(step, shape[i]);
  }
  return true;
}

TensorView TensorView::slice(int dimension, std::int64_t begin, std::int64_t end) const {
  TensorView part = *this;
  part.data =
      static_cast<std::byte*>(data) + begin * stride[dimension] * static_cast<std::int64_t>(size_of(dtype));
  part.shape[dimension] = end - begin;
  return part;
}

std::string TensorView::describe() const {
  return fmt::format("{} [{}]", name(dtype), fmt::join(shape.begin(), shape.begin() + rank, ", "));
}

namespace {

// Large blocks come zeroed from the system, a page at a time when it is first touched: by the thread that
// uses it, not all by this one. Larger pages than usual cost less to find.
std::shared_ptr<std::byte> map_zeroed(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  return {static_cast<std::byte*>(memory), [bytes](std::byte* data) { ::munmap(data, bytes); }};
}

std::shared_ptr<std::byte> zeroed(std::size_t bytes) {
  constexpr std::size_t large = std::size_t{4} << 20;
  if (bytes >= large) return map_zeroed(bytes);
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(64, bytes));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return {memory, std::free};
}

}  // namespace

Tensor Tensor::zeros(DType dtype, std::span<const std::int64_t> shape) {
  Tensor tensor;
  tensor.view_ = TensorView::contiguous(nullptr, dtype, shape);
  // A tensor without elements still has an address: it was given.
  const std::size_t bytes = (tensor.bytes() + 63) / 64 * 64 + (tensor.bytes() == 0 ? 64 : 0);
  tensor.memory_ = zeroed(bytes);
  tensor.view_.data = tensor.memory_.get();
  return tensor;
}

Tensor Tensor::clone() const {
  Tensor copy = zeros(dtype(), std::span(view_.shape.data(), static_cast<std::size_t>(view_.rank)));
  std::memcpy(copy.view_.data, view_.data, bytes());
  return copy;
}

}  // namespace chorale
