#include "implementations/eager/eager.h"

#include <cmath>
#include <optional>

#include "base/float.h"
#include "base/threads.h"
#include "implementations/eager/softmax_row.h"
#include "implementations/fingerprint.h"
#include "implementations/validate.h"

namespace chorale::eager {
namespace {

constexpr std::string_view eager_name = "eager";

class EagerPlan : public Plan {
 public:
  EagerPlan(Problem problem, Batch batch, Device device)
      : Plan(eager_name, std::move(problem), std::move(batch)), threads(device.threads) {}
  const int threads;
};

std::optional<double> sink_of(const Problem& problem, const TensorView& sinks, int head) {
  if (!problem.sinks) return std::nullopt;
  return load_element(sinks.data, sinks.dtype, head * sinks.stride[0]);
}

// One sequence and one KV head, with the query heads that share it: what one thread works on.
struct Group {
  const Plan& plan;
  const Problem& problem;
  const Batch& batch;
  int sequence, kv_head;

  Group(const Plan& of, std::int64_t index)
      : plan(of),
        problem(plan.problem()),
        batch(plan.batch()),
        sequence(static_cast<int>(index / problem.kv_heads)),
        kv_head(static_cast<int>(index % problem.kv_heads)) {}
  static std::int64_t count(const Plan& plan) {
    return std::int64_t{plan.batch().sequences()} * plan.problem().kv_heads;
  }

  // Calls body(row of q, head, where the row stands) for every query row of the group: heads ascending, then
  // rows.
  template <class Body>
  void for_each_query(Body&& body) const {
    const std::int64_t first_row = batch.cu_seqlens_q[static_cast<std::size_t>(sequence)];
    const std::int64_t queries = batch.q_len(sequence), keys = batch.kv_len(sequence);
    for (int head = kv_head * problem.group_size(); head < (kv_head + 1) * problem.group_size(); ++head) {
      for (std::int64_t row = 0; row < queries; ++row) {
        const Point at{.b = sequence, .h = problem.first_query_head + head, .q = keys - queries + row};
        body(first_row + row, head, at);
      }
    }
  }
};

void forward_group(const Group& group, const ForwardTensors& tensors) {
  const Problem& problem = group.problem;
  const Matrix keys = read_keys(group.plan, group.sequence, tensors.k, tensors.k_scale, group.kv_head);
  const Matrix values = read_keys(group.plan, group.sequence, tensors.v, tensors.v_scale, group.kv_head);
  std::vector<double> query(static_cast<std::size_t>(problem.head_dim));
  group.for_each_query([&](std::int64_t row, int head, const Point& at) {
    read_row(tensors.q, {row, head}, query);
    const SoftmaxRow softmax = softmax_row(problem, at, query, keys, sink_of(problem, tensors.sinks, head));
    std::vector<double> out(static_cast<std::size_t>(problem.value_dim()));
    for (std::int64_t k = 0; k < values.rows; ++k) {
      const auto i = static_cast<std::size_t>(k);
      if (softmax.visible[i]) add_scaled(softmax.weight[i], values.row(k), out);
    }
    write_row(tensors.out, {row, head}, out);
    if (!tensors.lse.empty()) {
      const std::int64_t place = row * tensors.lse.stride[0] + head * tensors.lse.stride[1];
      store_element(tensors.lse.data, tensors.lse.dtype, place, static_cast<float>(softmax.lse));
    }
  });
}

// The textbook: with P the weights, dP = dO V^T and delta = sum(P dP),
//     dV = P^T dO,  dS = P (dP - delta),  dX = dS score'(X) for X = scale Q K^T,  dQ = scale dX K,  dK =
//     scale dX^T Q.
// The weights are computed again from q and k: `out` and `lse` are rounded, the scores are not. A sink's
// weight takes part in the softmax but has no value, so its own dS is -P_sink delta. Returns those sums, one
// per head of the group.
std::vector<double> backward_group(const Group& group, const BackwardTensors& tensors) {
  const Problem& problem = group.problem;
  const double scale = problem.scale_or_default();
  const bool plain = problem.score.is_identity();
  const Matrix keys = read_keys(group.plan, group.sequence, tensors.k, tensors.k_scale, group.kv_head);
  const Matrix values = read_keys(group.plan, group.sequence, tensors.v, tensors.v_scale, group.kv_head);
  Matrix grad_keys = Matrix::zeros(keys.rows, keys.columns),
         grad_values = Matrix::zeros(values.rows, values.columns);
  std::vector<double> grad_sinks(static_cast<std::size_t>(problem.group_size()));
  std::vector<double> query(static_cast<std::size_t>(problem.head_dim));
  std::vector<double> grad_out(static_cast<std::size_t>(problem.value_dim()));
  std::vector<double> grad_weight(static_cast<std::size_t>(keys.rows));

  group.for_each_query([&](std::int64_t row, int head, Point at) {
    read_row(tensors.q, {row, head}, query);
    read_row(tensors.grad_out, {row, head}, grad_out);
    const SoftmaxRow softmax = softmax_row(problem, at, query, keys, sink_of(problem, tensors.sinks, head));
    double delta = 0;
    for (std::int64_t k = 0; k < keys.rows; ++k) {
      const auto i = static_cast<std::size_t>(k);
      if (!softmax.visible[i]) continue;
      grad_weight[i] = dot(grad_out, values.row(k));
      delta += softmax.weight[i] * grad_weight[i];
    }
    std::vector<double> grad_query(query.size());
    for (std::int64_t k = 0; k < keys.rows; ++k) {
      const auto i = static_cast<std::size_t>(k);
      if (!softmax.visible[i]) continue;
      at.k = k;
      const double slope = plain ? 1 : evaluate_score(problem.score.derivative(), at, softmax.scaled[i]);
      const double grad_scaled = softmax.weight[i] * (grad_weight[i] - delta) * slope;
      add_scaled(softmax.weight[i], grad_out, grad_values.row(k));
      add_scaled(scale * grad_scaled, keys.row(k), grad_query);
      add_scaled(scale * grad_scaled, query, grad_keys.row(k));
    }
    write_row(tensors.grad_q, {row, head}, grad_query);
    grad_sinks[static_cast<std::size_t>(head % problem.group_size())] -= softmax.sink_weight * delta;
  });

  std::int64_t place = 0;  // gradients of keys are packed by sequence, whatever the layout of the keys
  for (int before = 0; before < group.sequence; ++before) place += group.batch.kv_len(before);
  for (std::int64_t k = 0; k < keys.rows; ++k) {
    write_row(tensors.grad_k, {place + k, group.kv_head}, grad_keys.row(k));
    write_row(tensors.grad_v, {place + k, group.kv_head}, grad_values.row(k));
  }
  return grad_sinks;
}

class Eager final : public Implementation {
 public:
  std::string_view name() const override { return eager_name; }

  Status supports(const Problem& problem, const Device& device, Phase) const override {
    CHORALE_RETURN_IF_ERROR(problem.validate());
    return check_is_cpu(device);
  }

  Fingerprint fingerprint(const Problem& problem, const Device&) const override {
    return with_kv_dtype(
        {{{"kernel", "eager"}, {"arithmetic", "f64"}, {"order", "key-by-key"}, {"exp", "libm"}}}, problem);
  }

  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device& device) const override {
    CHORALE_ASSIGN_OR_RETURN(Problem bound, check_plan(problem, batch));
    return std::shared_ptr<const Plan>(std::make_shared<EagerPlan>(std::move(bound), batch, device));
  }

  Status forward(const Plan& plan, const ForwardTensors& tensors) const override {
    CHORALE_RETURN_IF_ERROR(check_forward(plan, name(), tensors));
    parallel_for(Group::count(plan), static_cast<const EagerPlan&>(plan).threads,
                 [&](std::int64_t index, int) { forward_group(Group(plan, index), tensors); });
    return Status::ok();
  }

  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    CHORALE_RETURN_IF_ERROR(check_backward(plan, name(), tensors));
    std::vector<std::vector<double>> grad_sinks(static_cast<std::size_t>(Group::count(plan)));
    parallel_for(Group::count(plan), static_cast<const EagerPlan&>(plan).threads,
                 [&](std::int64_t index, int) {
                   grad_sinks[static_cast<std::size_t>(index)] = backward_group(Group(plan, index), tensors);
                 });
    if (plan.problem().sinks) write_grad_sinks(plan, grad_sinks, tensors.grad_sinks);
    return Status::ok();
  }

 private:
  // Sums over the sequences in ascending order.
  static void write_grad_sinks(const Plan& plan, std::span<const std::vector<double>> groups,
                               const TensorView& out) {
    std::vector<double> total(static_cast<std::size_t>(plan.problem().query_heads));
    for (std::size_t index = 0; index < groups.size(); ++index) {
      const auto first = static_cast<std::size_t>(Group(plan, static_cast<std::int64_t>(index)).kv_head) *
                         groups[index].size();
      add_scaled(1, groups[index], std::span(total).subspan(first, groups[index].size()));
    }
    write_row(out, {}, total);
  }
};

}  // namespace
}  // namespace chorale::eager

const chorale::Implementation& chorale::eager_attention() {
  static const eager::Eager implementation;
  return implementation;
}
