// Linear: a layer without bias. Its weight is rounded to the compute type and packed for the products of both
// passes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>

#include "chorale/tensor.h"
#include "model/row_buffer.h"
#include "simd/packed_weight.h"

namespace chorale {

class Linear {
 public:
  // [outputs, inputs] float32. `assign` takes a new weight of the same shape into the same memory.
  Linear(const TensorView& weight, DType type, int threads);
  void assign(const TensorView& weight, int threads);

  std::int64_t outputs() const { return forward_.columns(); }
  std::int64_t inputs() const { return forward_.inner(); }

  // y = x W^T, rounded to `rounding`, for some rows.
  void forward(const RowBuffer& x, const RowBuffer& y, RowRange rows, DType rounding, int threads) const {
    forward(x, {{this, &y}}, rows, rounding, threads);
  }
  // Several layers of the same x: handed to threads together.
  struct Output {
    const Linear* linear;
    const RowBuffer* y;
  };
  static void forward(const RowBuffer& x, std::initializer_list<Output> outputs, RowRange rows,
                      DType rounding, int threads);
  // Packs for `backward`, if nobody has yet.
  void prepare_backward(int threads) const { (void)transposed(threads); }
  // grad_x = grad_y W.
  void backward(const RowBuffer& grad_y, const RowBuffer& grad_x, RowRange rows, int threads) const;
  // Adds the sum over rows of grad_y^T x to the weight's gradient [outputs, inputs]: one chain for each
  // element, which goes on from what the gradient holds, over rows ascending.
  static void backward_weight(const RowBuffer& grad_y, const RowBuffer& x, DType type,
                              const Tensor& grad_weight, int threads);

 private:
  // The layout that backward needs, made at its first use: who only generates never pays for it.
  struct Transposed {
    std::once_flag once;
    simd::PackedWeight weight;
  };
  const simd::PackedWeight& transposed(int threads) const;

  simd::PackedWeight forward_;
  std::unique_ptr<Transposed> transposed_;
};

}  // namespace chorale
