#include "implementations/cpu/gradient_rows.h"

#include <algorithm>
#include <cmath>

#include "base/float.h"
#include "base/threads.h"
#include "implementations/cpu/query_rows.h"
#include "simd/simd.h"

namespace chorale::tiled {

std::vector<WholePass> whole_passes(const TiledPlan& plan) {
  std::vector<WholePass> passes;
  for (int sequence = 0; sequence < plan.batch().sequences(); ++sequence)
    for (int head = 0; head < plan.problem().kv_heads; ++head)
      passes.push_back(
          {sequence, head,
           static_cast<double>(plan.sequence_rows(sequence)) * static_cast<double>(plan.keys(sequence))});
  std::stable_sort(passes.begin(), passes.end(),
                   [](const WholePass& x, const WholePass& y) { return x.cost > y.cost; });
  return passes;
}

bool end_before_two_passes(const std::vector<WholePass>& passes, int threads) {
  std::vector<double> busy(static_cast<std::size_t>(threads));  // how long each thread is
  double all = 0;
  for (const WholePass& pass : passes) {
    *std::min_element(busy.begin(), busy.end()) += pass.cost;
    all += pass.cost;
  }
  return 5 * *std::max_element(busy.begin(), busy.end()) <= 7 * all / threads;
}

std::vector<float> row_deltas(const TiledPlan& plan, const BackwardTensors& tensors) {
  const std::int64_t heads = plan.problem().query_heads, dim = plan.problem().value_dim();
  std::vector<float> deltas(static_cast<std::size_t>(plan.batch().total_q() * heads));
  parallel_for(static_cast<std::int64_t>(plan.blocks().size()), plan.threads(), [&](std::int64_t i, int) {
    const QueryBlock& block = plan.blocks()[static_cast<std::size_t>(i)];
    std::vector<float> grad_outs(static_cast<std::size_t>(plan.rows(block) * dim)), outs(grad_outs.size());
    load_block(plan, block, tensors.grad_out, grad_outs.data(), dim);
    load_block(plan, block, tensors.out, outs.data(), dim);
    for (std::int64_t r = 0; r < plan.rows(block); ++r)
      deltas[static_cast<std::size_t>(plan.query(block, r) * heads + plan.head(block, r))] =
          simd::dot(grad_outs.data() + r * dim, outs.data() + r * dim, dim);
  });
  return deltas;
}

void sum_grad_sinks(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas) {
  const std::int64_t heads = plan.problem().query_heads;
  for (std::int64_t head = 0; head < heads; ++head) {
    const float sink = load_element(tensors.sinks.data, DType::float32, head * tensors.sinks.stride[0]);
    float sum = 0;
    for (std::int64_t query = 0; query < plan.batch().total_q(); ++query) {
      float p = sink - load_element(tensors.lse.data, DType::float32,
                                    query * tensors.lse.stride[0] + head * tensors.lse.stride[1]);
      simd::exp(&p, &p, 1);
      sum = std::fma(-p, deltas[static_cast<std::size_t>(query * heads + head)], sum);
    }
    store_element(tensors.grad_sinks.data, DType::float32, head * tensors.grad_sinks.stride[0], sum);
  }
}

void store_gradient(float* row, const TensorView& tensor, std::int64_t index, std::int64_t head) {
  const std::int64_t dim = tensor.shape[2];
  for (std::int64_t c = 0; c < dim; ++c) row[c] += 0.0f;
  simd::from_float(
      row, tensor.dtype,
      static_cast<std::byte*>(tensor.data) + (index * tensor.stride[0] + head * tensor.stride[1]) *
                                                 static_cast<std::int64_t>(size_of(tensor.dtype)),
      dim);
}

}  // namespace chorale::tiled
