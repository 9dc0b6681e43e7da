#include "implementations/cpu/finish.h"

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

void finish_row(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t query, std::int64_t head,
                const RowState& state) {
  const std::int64_t dim = plan.problem().value_dim();
  const Normaliser row = normaliser(plan, tensors, head, state.maximum, state.sum);
  if (row.scale != 1) simd::scale(state.out, row.scale, dim);
  simd::divide(state.out, row.divisor, dim);
  // A zero's sign may tell which hidden keys were multiplied by zero: there is one zero.
  for (std::int64_t c = 0; c < dim; ++c) state.out[c] += 0.0f;
  const TensorView& out = tensors.out;
  auto* to = static_cast<std::byte*>(out.data) +
             (query * out.stride[0] + head * out.stride[1]) * static_cast<std::int64_t>(size_of(out.dtype));
  simd::from_float(state.out, out.dtype, to, dim);
  float logarithm;
  simd::log(&row.divisor, &logarithm, 1);
  store_lse(tensors, query, head, row.maximum + logarithm);
}

}  // namespace chorale::tiled
