#include "implementations/cpu/finish.h"

#include <cmath>
#include <limits>

#include "base/float.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

constexpr float nothing = -std::numeric_limits<float>::infinity();

// Divides by the sum, the sink (a natural logit, or -inf) included, and returns the LSE.
float divide_by_sum(const RowState& state, float natural_factor, float sink, std::int64_t dim) {
  if (state.maximum == nothing && state.sum == 0.0f) return sink;  // out is 0 already
  float maximum = state.maximum * natural_factor, sum = state.sum;
  if (sink != nothing) {
    const float with_sink = sink > maximum ? sink : maximum;
    float factors[] = {maximum - with_sink, sink - with_sink};
    simd::exp(factors, factors, 2);
    sum = std::fma(sum, factors[0], factors[1]);
    simd::scale(state.out, factors[0], dim);
    maximum = with_sink;
  }
  simd::divide(state.out, sum, dim);
  // A zero's sign may tell which hidden keys were multiplied by zero: there is one zero.
  for (std::int64_t c = 0; c < dim; ++c) state.out[c] += 0.0f;
  float logarithm;
  simd::log(&sum, &logarithm, 1);
  return maximum + logarithm;
}

}  // namespace

void finish_row(const TiledPlan& plan, const ForwardTensors& tensors, std::int64_t query, std::int64_t head,
                const RowState& state) {
  const std::int64_t dim = plan.problem().value_dim();
  const float sink = plan.problem().sinks
                         ? load_element(tensors.sinks.data, DType::float32, head * tensors.sinks.stride[0])
                         : nothing;
  const float lse = divide_by_sum(state, plan.natural_factor(), sink, dim);
  const TensorView& out = tensors.out;
  auto* to = static_cast<std::byte*>(out.data) +
             (query * out.stride[0] + head * out.stride[1]) * static_cast<std::int64_t>(size_of(out.dtype));
  simd::from_float(state.out, out.dtype, to, dim);
  if (!tensors.lse.empty())
    store_element(tensors.lse.data, DType::float32,
                  query * tensors.lse.stride[0] + head * tensors.lse.stride[1], lse);
}

}  // namespace chorale::tiled
