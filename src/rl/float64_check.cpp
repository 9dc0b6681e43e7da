#include "rl/float64_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/threads.h"
#include "implementations/eager/eager.h"
#include "implementations/eager/softmax_row.h"

namespace chorale {
namespace {

using eager::Matrix;

double norm(std::span<const double> x) { return std::sqrt(eager::dot(x, x)); }

// Spacing at 1 of the type that weights and results are rounded to; for float32 what sums of some hundred
// terms cost.
double spacing(DType dtype) {
  if (dtype == DType::bfloat16) return 0x1p-8;
  return dtype == DType::float16 ? 0x1p-11 : 512 * 0x1p-24;
}

struct ExactRow {
  std::vector<double> value;
  double bound = 0;  // of the norm of an implementation's error
};

ExactRow exact_row(const eager::SoftmaxRow& softmax, const Matrix& values, DType dtype) {
  ExactRow row{std::vector<double>(static_cast<std::size_t>(values.columns))};
  double squares = 0, sum = 0;
  for (std::int64_t k = 0; k < values.rows; ++k) {
    const auto i = static_cast<std::size_t>(k);
    if (!softmax.visible[i]) continue;
    eager::add_scaled(softmax.weight[i], values.row(k), row.value);
    const double term = softmax.weight[i] * norm(values.row(k));
    squares += term * term;
    sum += term;
  }
  row.bound = spacing(dtype) * (0.75 * norm(row.value) + 1.25 * std::sqrt(squares)) + 0x1p-14 * sum;
  return row;
}

}  // namespace

Result<std::unique_ptr<Float64Check>> Float64Check::create(PackedAttention& attention, const Problem& problem,
                                                           std::span<const std::int32_t> cu_seqlens) {
  if (problem.sinks) return Status::unsupported("sinks: the comparison with float64 has none");
  CHORALE_ASSIGN_OR_RETURN(
      std::shared_ptr<const Plan> plan,
      eager_attention().plan(problem, Batch::packed({cu_seqlens.begin(), cu_seqlens.end()}), Device::cpu()));
  return std::unique_ptr<Float64Check>(new Float64Check(attention, std::move(plan)));
}

Status Float64Check::forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                             const TensorView& out, const TensorView& lse) {
  CHORALE_RETURN_IF_ERROR(attention_.forward(layer, q, k, v, out, lse));
  const PackedAttention::KeysAndValues kv = attention_.prepare(layer, k, v);
  const ForwardTensors tensors{
      .q = q, .k = kv.k, .v = kv.v, .out = out, .k_scale = kv.k_scale, .v_scale = kv.v_scale};
  const int heads = plan_->problem().kv_heads;
  parallel_for(std::int64_t{plan_->batch().sequences()} * heads, 0, [&](std::int64_t i, int) {
    compare(layer, static_cast<int>(i / heads), static_cast<int>(i % heads), tensors);
  });
  return Status::ok();
}

void Float64Check::compare(int layer, int sequence, int kv_head, const ForwardTensors& tensors) {
  const Problem& problem = plan_->problem();
  const Batch& batch = plan_->batch();
  const Matrix keys = eager::read_keys(*plan_, sequence, tensors.k, tensors.k_scale, kv_head),
               values = eager::read_keys(*plan_, sequence, tensors.v, tensors.v_scale, kv_head);
  std::vector<double> query(static_cast<std::size_t>(problem.head_dim));
  std::vector<double> got(static_cast<std::size_t>(problem.value_dim()));
  const std::int64_t first = batch.cu_seqlens_q[static_cast<std::size_t>(sequence)];
  for (int head = kv_head * problem.group_size(); head < (kv_head + 1) * problem.group_size(); ++head)
    for (std::int64_t position = 0; position < batch.q_len(sequence); ++position) {
      eager::read_row(tensors.q, {first + position, head}, query);
      eager::read_row(tensors.out, {first + position, head}, got);
      const Point at{.b = sequence, .h = problem.first_query_head + head, .q = position};
      const ExactRow exact =
          exact_row(eager::softmax_row(problem, at, query, keys, std::nullopt), values, problem.dtype);
      eager::add_scaled(-1, exact.value, got);
      add(layer, sequence, position, head, norm(got), exact.bound);
    }
}

void Float64Check::add(int layer, int sequence, std::int64_t position, int head, double error, double bound) {
  const std::lock_guard lock(mutex_);
  ++comparison_.rows;
  if (error > 0) comparison_.worst = std::max(comparison_.worst, error / bound);
  if (error <= bound) return;  // not so where it is NaN
  if (comparison_.outside++ == 0)
    comparison_.first_outside =
        fmt::format("layer {}, sequence {}, position {}, head {}: off by {:.3e} where {:.3e} is allowed",
                    layer, sequence, position, head, error, bound);
}

}  // namespace chorale
