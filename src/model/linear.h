// Linear: a layer without bias. Weights are rounded to the compute type and laid out for simd::multiply.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "chorale/tensor.h"
#include "model/row_buffer.h"
#include "simd/simd.h"

namespace chorale {

class Linear {
 public:
  Linear(const TensorView& weight, DType type);  // [outputs, inputs] float32

  std::int64_t outputs() const { return forward_.columns(); }
  std::int64_t inputs() const { return forward_.inner(); }

  // y = x W^T, rounded to `rounding`, for some rows.
  void forward(const RowBuffer& x, const RowBuffer& y, RowRange rows, DType rounding, int threads) const;
  // grad_x = grad_y W.
  void backward(const RowBuffer& grad_y, const RowBuffer& grad_x, RowRange rows, int threads) const;
  // Adds outputs [first, last) of sum over rows of grad_y^T x into the weight's gradient [outputs, inputs]:
  // one chain for each element, which goes on from what the gradient holds, over rows ascending.
  static void backward_weight(const RowBuffer& grad_y, const RowBuffer& x, const Tensor& grad_weight,
                              std::int64_t first, std::int64_t last);

 private:
  // The layout that backward needs, made at its first use: who only generates never pays for it.
  struct Transposed {
    std::once_flag once;
    simd::PackedWeight weight;
  };
  const simd::PackedWeight& transposed() const;

  simd::PackedWeight forward_;
  std::unique_ptr<Transposed> transposed_;
};

}  // namespace chorale
