#include "model/linear.h"

#include <algorithm>

#include "model/operations.h"

namespace chorale {
namespace {

simd::PackedWeight pack_rounded(const TensorView& weight, DType type) {
  if (type == DType::float32) return simd::PackedWeight::pack(weight);
  const Tensor narrow = Tensor::zeros(type, {weight.shape[0], weight.shape[1]});
  simd::from_float(static_cast<const float*>(weight.data), type, narrow.view().data, weight.elements());
  return simd::PackedWeight::pack(narrow);
}

simd::PackedWeight pack_transposed(const simd::PackedWeight& packed) {
  const Tensor weight = Tensor::zeros(DType::float32, {packed.columns(), packed.inner()});
  float* element = weight.as<float>().data();
  for (std::int64_t output = 0; output < packed.columns(); ++output)
    for (std::int64_t input = 0; input < packed.inner(); ++input)
      *element++ = packed.panel(output / simd::lanes)[input * simd::lanes + output % simd::lanes];
  return simd::PackedWeight::pack_transposed(weight);
}

}  // namespace

Linear::Linear(const TensorView& weight, DType type)
    : forward_(pack_rounded(weight, type)), transposed_(std::make_unique<Transposed>()) {}

const simd::PackedWeight& Linear::transposed() const {
  std::call_once(transposed_->once, [&] { transposed_->weight = pack_transposed(forward_); });
  return transposed_->weight;
}

void Linear::forward(const RowBuffer& x, const RowBuffer& y, RowRange rows, DType rounding,
                     int threads) const {
  simd::multiply(x[rows.begin], x.stride(), rows.size(), forward_, y[rows.begin], y.stride(), threads);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) ops::round(rounding, y[row], outputs());
}

void Linear::backward(const RowBuffer& grad_y, const RowBuffer& grad_x, RowRange rows, int threads) const {
  simd::multiply(grad_y[rows.begin], grad_y.stride(), rows.size(), transposed(), grad_x[rows.begin],
                 grad_x.stride(), threads);
}

void Linear::backward_weight(const RowBuffer& grad_y, const RowBuffer& x, const Tensor& grad_weight,
                             std::int64_t first, std::int64_t last) {
  // Rows are taken a stretch at a time, so that a stretch stays in cache while every output uses it; the
  // chains go on through memory, which changes no bit.
  constexpr std::int64_t stretch = 256;
  const std::int64_t inputs = x.columns();
  const RowBuffer sums(last - first, inputs);
  float* gradient = grad_weight.as<float>().data() + first * inputs;
  for (std::int64_t i = 0; i < sums.rows(); ++i) std::copy_n(gradient + i * inputs, inputs, sums[i]);
  for (std::int64_t row = 0; row < x.rows(); row += stretch)
    simd::multiply({sums.rows(), inputs, std::min(stretch, x.rows() - row)},
                   {grad_y[row] + first, 1, grad_y.stride()}, x[row], x.stride(), sums[0], sums.stride(),
                   true);
  for (std::int64_t i = 0; i < sums.rows(); ++i) std::copy_n(sums[i], inputs, gradient + i * inputs);
}

}  // namespace chorale
