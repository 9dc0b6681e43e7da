// TensorView and Tensor: data with a type, a shape and strides.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "chorale/status.h"

namespace chorale {

// float8_e4m3 is for KV caches only: nothing computes in it.
enum class DType : std::uint8_t { float32, bfloat16, float16, float8_e4m3 };
std::string_view name(DType dtype);                // "float32", "bfloat16", "float16", "float8_e4m3"
Result<DType> parse_dtype(std::string_view text);  // the names above and "fp32", "bf16", "fp16", "fp8_e4m3"
constexpr bool is_compute_type(DType dtype) { return dtype != DType::float8_e4m3; }
constexpr std::size_t size_of(DType dtype) {  // bytes
  return dtype == DType::float32 ? 4 : dtype == DType::float8_e4m3 ? 1 : 2;
}

// Storage only; conversions are in src/base/float.h. bfloat16 is the upper half of a float32; float16 is IEEE
// binary16; float8_e4m3 is OCP's E4M3: bias 7, largest value 448, no infinity, 0x7f and 0xff are NaN.
struct bfloat16 {
  std::uint16_t bits;
  bool operator==(const bfloat16&) const = default;
};
struct float16 {
  std::uint16_t bits;
  bool operator==(const float16&) const = default;
};
struct float8_e4m3 {
  std::uint8_t bits;
  bool operator==(const float8_e4m3&) const = default;
};

// A view of up to four dimensions over memory that somebody else owns and keeps alive (as in DLPack,
// const-ness is a matter of which argument it is passed as). Strides are in elements and may be any
// non-negative number, 0 included; element (i, j, ...) lies at data + size_of(dtype) * (i * stride[0] + j *
// stride[1] + ...), computed in 64 bits.
struct TensorView {
  static constexpr int max_rank = 4;

  void* data = nullptr;
  DType dtype = DType::float32;
  int rank = 0;
  std::array<std::int64_t, max_rank> shape{};
  std::array<std::int64_t, max_rank> stride{};

  // A row-major view: the last dimension has stride 1.
  static TensorView contiguous(const void* data, DType dtype, std::span<const std::int64_t> shape);
  static TensorView contiguous(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) {
    return contiguous(data, dtype, std::span(shape.begin(), shape.size()));
  }

  bool empty() const { return data == nullptr; }  // "not given"
  std::int64_t elements() const;                  // product of the shape
  bool is_contiguous() const;
  // Sub-range [begin, end) of one dimension; the caller checks the bounds.
  TensorView slice(int dimension, std::int64_t begin, std::int64_t end) const;
  std::string describe() const;  // "bfloat16 [128, 8, 64]"
};

// A tensor that owns its memory: row-major, 64-byte aligned, zero at birth. Copies share the memory; clone()
// does not.
class Tensor {
 public:
  Tensor() = default;
  static Tensor zeros(DType dtype, std::span<const std::int64_t> shape);
  static Tensor zeros(DType dtype, std::initializer_list<std::int64_t> shape) {
    return zeros(dtype, std::span(shape.begin(), shape.size()));
  }

  Tensor clone() const;
  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }  // NOLINT: a Tensor is passed where a view is taken
  DType dtype() const { return view_.dtype; }
  std::int64_t shape(int dimension) const { return view_.shape[static_cast<std::size_t>(dimension)]; }
  std::int64_t elements() const { return view_.elements(); }
  std::size_t bytes() const { return static_cast<std::size_t>(elements()) * size_of(view_.dtype); }
  bool empty() const { return view_.data == nullptr; }

  // The elements as T, which must be the storage type of dtype() (float, bfloat16, float16, float8_e4m3).
  template <class T>
  std::span<T> as() const {
    return {static_cast<T*>(view_.data), static_cast<std::size_t>(elements())};
  }

 private:
  TensorView view_;
  std::shared_ptr<std::byte> memory_;
};

}  // namespace chorale
