#include "model/linear.h"

#include <vector>

namespace chorale {

Linear::Linear(const TensorView& weight, DType type, int threads)
    : transposed_(std::make_unique<Transposed>()) {
  forward_.pack(weight, type, threads);
}

void Linear::assign(const TensorView& weight, int threads) {
  forward_.pack(weight, forward_.type(), threads);
  if (!transposed_->weight.empty()) transposed_->weight.pack_transposed(forward_, threads);
}

const simd::PackedWeight& Linear::transposed(int threads) const {
  std::call_once(transposed_->once, [&] { transposed_->weight.pack_transposed(forward_, threads); });
  return transposed_->weight;
}

void Linear::forward(const RowBuffer& x, std::initializer_list<Output> outputs, RowRange rows, DType rounding,
                     int threads) {
  std::vector<simd::WeightProduct> products;
  for (const auto& [linear, y] : outputs)
    products.push_back({&linear->forward_, (*y)[rows.begin], y->stride()});
  simd::multiply(x[rows.begin], x.stride(), rows.size(), products, rounding, threads);
}

void Linear::backward(const RowBuffer& grad_y, const RowBuffer& grad_x, RowRange rows, int threads) const {
  const simd::WeightProduct product{&transposed(threads), grad_x[rows.begin], grad_x.stride()};
  simd::multiply(grad_y[rows.begin], grad_y.stride(), rows.size(), {&product, 1}, DType::float32, threads);
}

void Linear::backward_weight(const RowBuffer& grad_y, const RowBuffer& x, DType type,
                             const Tensor& grad_weight, int threads) {
  simd::add_transposed_product({grad_y[0], grad_y.stride(), grad_y.columns()},
                               {x[0], x.stride(), x.columns()}, x.rows(), type,
                               grad_weight.as<float>().data(), x.columns(), threads);
}

}  // namespace chorale
