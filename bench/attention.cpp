// How long attention takes: forward and backward of one packed sequence, and one token's decode from pages.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <numeric>
#include <random>

#include "base/float.h"
#include "chorale/chorale.h"

namespace chorale {
namespace {

Problem problem() {
  return {.query_heads = 8, .kv_heads = 2, .head_dim = 64, .dtype = DType::bfloat16, .mask = mask::causal()};
}

Tensor random_tensor(DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor tensor = Tensor::zeros(dtype, shape);
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < tensor.elements(); ++i)
    store_element(tensor.view().data, dtype, i, normal(generator));
  return tensor;
}

// Multiplications and additions of one product of scores' size, over the pairs that a causal mask shows.
double product_operations(const Problem& p, std::int64_t length) {
  return static_cast<double>(p.query_heads) * p.head_dim * static_cast<double>(length) *
         static_cast<double>(length + 1);
}

struct Packed {
  explicit Packed(std::int64_t length)
      : attention(
            Attention::create(problem(), "auto", Device::cpu(), {Phase::forward, Phase::backward}).value()),
        plan(attention.plan(Batch::packed({0, static_cast<std::int32_t>(length)})).value()),
        q(random_tensor(DType::bfloat16, {length, 8, 64})),
        k(random_tensor(DType::bfloat16, {length, 2, 64})),
        v(random_tensor(DType::bfloat16, {length, 2, 64})),
        out(Tensor::zeros(DType::bfloat16, {length, 8, 64})),
        lse(Tensor::zeros(DType::float32, {length, 8})) {}
  Status forward() const {
    return attention.forward(*plan, {.q = q, .k = k, .v = v, .out = out, .lse = lse});
  }

  Attention attention;
  std::shared_ptr<const Plan> plan;
  Tensor q, k, v, out, lse;
};

// Runs one step until the clock is satisfied, or stops with what went wrong.
template <class Step>
void measure(benchmark::State& state, double operations, const Step& step) {
  for (auto _ : state)
    if (const Status status = step(); !status.is_ok()) {
      state.SkipWithError(status.message().c_str());
      return;
    }
  state.counters["FLOP/s"] = benchmark::Counter(operations, benchmark::Counter::kIsIterationInvariantRate);
}

void forward(benchmark::State& state) {
  const Packed packed(state.range(0));
  measure(state, 2 * product_operations(problem(), state.range(0)), [&] { return packed.forward(); });
}
BENCHMARK(forward)->RangeMultiplier(4)->Range(256, 4096)->UseRealTime()->Unit(benchmark::kMillisecond);

void backward(benchmark::State& state) {
  const Packed packed(state.range(0));
  if (const Status status = packed.forward(); !status.is_ok())
    return state.SkipWithError(status.message().c_str());
  const Tensor grad_out = random_tensor(DType::bfloat16, {state.range(0), 8, 64});
  const Tensor grad_q = packed.q.clone(), grad_k = packed.k.clone(), grad_v = packed.v.clone();
  measure(state, 5 * product_operations(problem(), state.range(0)), [&] {
    return packed.attention.backward(*packed.plan, {.q = packed.q,
                                                    .k = packed.k,
                                                    .v = packed.v,
                                                    .out = packed.out,
                                                    .lse = packed.lse,
                                                    .grad_out = grad_out,
                                                    .grad_q = grad_q,
                                                    .grad_k = grad_k,
                                                    .grad_v = grad_v});
  });
}
BENCHMARK(backward)->RangeMultiplier(4)->Range(256, 4096)->UseRealTime()->Unit(benchmark::kMillisecond);

// Eight sequences of the given length, each with one new token, in pages of 16.
void decode(benchmark::State& state) {
  constexpr std::int32_t sequences = 8, page_size = 16;
  const auto length = static_cast<std::int32_t>(state.range(0));
  const std::int32_t pages_each = length / page_size;
  std::vector<std::vector<std::int32_t>> tables(
      sequences, std::vector<std::int32_t>(static_cast<std::size_t>(pages_each)));
  for (std::int32_t b = 0; b < sequences; ++b) std::iota(tables[b].begin(), tables[b].end(), b * pages_each);
  std::vector<std::int32_t> cu_seqlens(sequences + 1);
  std::iota(cu_seqlens.begin(), cu_seqlens.end(), 0);
  const Batch batch =
      Batch::paged(cu_seqlens, std::vector<std::int32_t>(sequences, length), page_size, tables).value();

  const Attention attention = Attention::create(problem(), "auto", Device::cpu(), {Phase::decode}).value();
  const auto plan = attention.plan(batch).value();
  const Tensor q = random_tensor(DType::bfloat16, {sequences, 8, 64});
  const Tensor k = random_tensor(DType::bfloat16, {sequences * pages_each, page_size, 2, 64});
  const Tensor v = random_tensor(DType::bfloat16, {sequences * pages_each, page_size, 2, 64});
  const Tensor out = Tensor::zeros(DType::bfloat16, {sequences, 8, 64});
  measure(state, 4.0 * sequences * 8 * 64 * length,
          [&] { return attention.forward(*plan, {.q = q, .k = k, .v = v, .out = out}); });
}
BENCHMARK(decode)->RangeMultiplier(4)->Range(256, 4096)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace chorale
