#include "implementations/cpu/finish.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float.h"
#include "simd/simd.h"

namespace chorale::tiled {

Normaliser normaliser(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t head, float maximum,
                      float sum) {
  constexpr float nothing = -std::numeric_limits<float>::infinity();
  const float sink = plan.problem().sinks
                         ? load_element(tensors.sinks.data, DType::float32, head * tensors.sinks.stride[0])
                         : nothing;
  if (maximum == nothing && sum == 0.0f) return {.maximum = sink};  // out is 0 already
  Normaliser row;
  maximum *= plan.natural_factor();
  if (sink != nothing) {
    const float with_sink = sink > maximum ? sink : maximum;
    float factors[] = {maximum - with_sink, sink - with_sink};
    simd::exp(factors, factors, 2);
    sum = std::fma(sum, factors[0], factors[1]);
    row.scale = factors[0];
    maximum = with_sink;
  }
  row.divisor = sum;
  row.maximum = maximum;
  return row;
}

void store_lse(const ForwardTensors& tensors, std::int64_t query, std::int64_t head, float lse) {
  if (!tensors.lse.empty())
    store_element(tensors.lse.data, DType::float32,
                  query * tensors.lse.stride[0] + head * tensors.lse.stride[1], lse);
}

namespace {

Normaliser finish_out(const TiledPlan& plan, const ForwardTensors& tensors, const FinishedRow& finished) {
  const auto& [query, head, state] = finished;
  const std::int64_t dim = plan.problem().value_dim();
  const Normaliser row = normaliser(plan, tensors, head, state.maximum, state.sum);
  if (row.scale != 1) simd::scale(state.out, row.scale, dim);
  if (plan.arithmetic() == Arithmetic::tdpbf16)
    simd::scale(state.out, 1 / row.divisor, dim);  // amx::store_quotients
  else
    simd::divide(state.out, row.divisor, dim);
  // A zero's sign may tell which hidden keys were multiplied by zero: there is one zero.
  for (std::int64_t c = 0; c < dim; ++c) state.out[c] += 0.0f;
  const TensorView& out = tensors.out;
  auto* to = static_cast<std::byte*>(out.data) +
             (query * out.stride[0] + head * out.stride[1]) * static_cast<std::int64_t>(size_of(out.dtype));
  simd::from_float(state.out, out.dtype, to, dim);
  return row;
}

}  // namespace

void finish_rows(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t rows,
                 const std::function<FinishedRow(std::int64_t)>& row) {
  constexpr std::int64_t together = simd::lanes;  // one logarithm costs as much as sixteen
  for (std::int64_t first = 0; first < rows; first += together) {
    const std::int64_t count = std::min(together, rows - first);
    float maxima[together], logarithms[together];
    for (std::int64_t i = 0; i < count; ++i) {
      const Normaliser of = finish_out(plan, tensors, row(first + i));
      maxima[i] = of.maximum, logarithms[i] = of.divisor;
    }
    simd::log(logarithms, logarithms, count);
    for (std::int64_t i = 0; i < count; ++i) {
      const FinishedRow of = row(first + i);
      store_lse(tensors, of.query, of.head, maxima[i] + logarithms[i]);
    }
  }
}

}  // namespace chorale::tiled
