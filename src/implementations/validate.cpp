#include "implementations/validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/float.h"
#include "implementations/views.h"
#include "kv/quantise.h"
#include "mask/program.h"
#include "mask/table.h"

namespace chorale {
namespace {

Status check_tables(const Problem& problem, const Batch& batch) {
  const Program* const programs[] = {&problem.mask.program(), &problem.score.program(),
                                     &problem.score.derivative()};
  if (std::ranges::all_of(programs, [](const Program* program) { return program->tables().empty(); }))
    return Status::ok();
  const std::int64_t first_head = problem.first_query_head;
  for (int sequence = 0; sequence < batch.sequences(); ++sequence) {
    const std::int64_t queries = batch.q_len(sequence), keys = batch.kv_len(sequence);
    if (queries == 0 || keys == 0) continue;
    const Box box{.b = {sequence, sequence},
                  .h = {first_head, first_head + problem.query_heads - 1},
                  .q = {keys - queries, keys - 1},
                  .k = {0, keys - 1}};
    for (const Program* program : programs) {
      if (program->tables().empty()) continue;
      CHORALE_RETURN_IF_ERROR(
          check_table_accesses(*program, box).with_context(fmt::format("sequence {}", sequence)));
    }
  }
  return Status::ok();
}

Status check_owner(const Plan& plan, std::string_view implementation) {
  if (plan.implementation() == implementation) return Status::ok();
  return Status::invalid_argument(
      fmt::format("the plan was made by {}: must be made by {}", plan.implementation(), implementation));
}

// Shapes of everything that forward and backward may be given, for one plan.
struct Shapes {
  const Problem& problem;
  const Batch& batch;

  std::vector<std::int64_t> query() const { return {batch.total_q(), problem.query_heads, problem.head_dim}; }
  std::vector<std::int64_t> output() const {
    return {batch.total_q(), problem.query_heads, problem.value_dim()};
  }
  std::vector<std::int64_t> lse() const { return {batch.total_q(), problem.query_heads}; }
  std::vector<std::int64_t> sinks() const { return {problem.query_heads}; }
  std::vector<std::int64_t> packed(int columns) const { return {batch.total_k(), problem.kv_heads, columns}; }
  std::vector<std::int64_t> pool(std::int64_t pages, int columns) const {
    return {pages, batch.page_size, problem.kv_heads, columns};
  }
  std::vector<std::int64_t> keys() const {
    return batch.is_paged() ? pool(any_extent, problem.head_dim) : packed(problem.head_dim);
  }
  // In a paged layout keys and values have the same pages.
  std::vector<std::int64_t> values(const TensorView& keys) const {
    return batch.is_paged() ? pool(keys.shape[0], problem.value_dim()) : packed(problem.value_dim());
  }
};

Status check_views(std::span<const NamedView> tensors) {
  for (const NamedView& tensor : tensors) CHORALE_RETURN_IF_ERROR(check_view(tensor));
  return check_disjoint(tensors);
}

// `view` belongs to the call exactly if the problem has `what` it is for.
Status check_given_with(bool wanted, std::string_view what, std::string_view name, const TensorView& view) {
  if (wanted == !view.empty()) return Status::ok();
  return Status::invalid_argument(
      wanted ? fmt::format("{}: must be given, since the problem has {}", name, what)
             : fmt::format("{}: must be left empty, since the problem has no {}", name, what));
}
Status check_given_with_sinks(std::string_view name, const TensorView& view, const Problem& problem) {
  return check_given_with(problem.sinks, "sinks", name, view);
}

// Scales of k and v: given if the problem has them, of the right shape, and each of them usable.
Status check_kv_scales(const Problem& problem, const TensorView& k_scale, const TensorView& v_scale,
                       Memory memory = Memory::host) {
  for (const auto& [name, view] : {std::pair("k_scale", &k_scale), std::pair("v_scale", &v_scale)}) {
    CHORALE_RETURN_IF_ERROR(check_given_with(problem.has_kv_scales(), "float8 keys and values", name, *view));
    if (!problem.has_kv_scales()) continue;
    CHORALE_RETURN_IF_ERROR(check_view({name, view, Access::read, DType::float32, {problem.kv_heads}}));
    for (int head = 0; memory == Memory::host && head < problem.kv_heads; ++head)
      CHORALE_RETURN_IF_ERROR(
          check_kv_scale(name, head, load_element(view->data, view->dtype, head * view->stride[0])));
  }
  return Status::ok();
}

Status check_pages(const Batch& batch, std::int64_t pages) {
  for (int sequence = 0; batch.is_paged() && sequence < batch.sequences(); ++sequence) {
    const std::int64_t used = (std::int64_t{batch.kv_lens[sequence]} + batch.page_size - 1) / batch.page_size;
    const std::int32_t* row = batch.block_table.data() + sequence * batch.block_table_stride;
    for (std::int64_t i = 0; i < used; ++i) {
      if (row[i] >= 0 && row[i] < pages) continue;
      return Status::out_of_range(fmt::format("block_table[{}][{}] is page {}: the pool has pages 0 to {}",
                                              sequence, i, row[i], pages - 1));
    }
  }
  return Status::ok();
}

// The same instructions over the same tables.
bool same_program(const Program& x, const Program& y) {
  const auto same_table = [](const Table& a, const Table& b) {
    return &a.data() == &b.data() || a.data().same_content(b.data());
  };
  return std::ranges::equal(x.instructions(), y.instructions()) &&
         std::ranges::equal(x.tables(), y.tables(), same_table);
}

template <class Rule>  // Mask or Score
Status check_same_rule(std::string_view field, const Rule& planned, const Rule& unbound, const Batch& batch) {
  if (&planned.program() == &unbound.program()) return Status::ok();
  CHORALE_ASSIGN_OR_RETURN(const Rule here, unbound.with_tables(batch.tables));
  if (same_program(planned.program(), here.program())) return Status::ok();
  return Status::invalid_argument(
      fmt::format("the plan was made for another problem: its {} is \"{}\" and this one's is \"{}\"{}", field,
                  planned.to_string(), here.to_string(),
                  planned.to_string() == here.to_string() ? " with other tables" : ""));
}

}  // namespace

Result<Problem> check_plan(const Problem& problem, const Batch& batch) {
  CHORALE_RETURN_IF_ERROR(problem.validate());
  CHORALE_RETURN_IF_ERROR(batch.validate());
  Problem bound = problem;
  CHORALE_ASSIGN_OR_RETURN(bound.mask, problem.mask.with_tables(batch.tables));
  CHORALE_ASSIGN_OR_RETURN(bound.score, problem.score.with_tables(batch.tables));
  CHORALE_RETURN_IF_ERROR(check_tables(bound, batch));
  return bound;
}

Status check_is_cpu(const Device& device) {
  if (device.kind == Device::Kind::cpu) return Status::ok();
  return Status::unsupported(fmt::format("runs on the CPU only, not on cuda:{}", device.ordinal));
}

Status check_forward(const Plan& plan, std::string_view implementation, const ForwardTensors& tensors,
                     Memory memory) {
  CHORALE_RETURN_IF_ERROR(check_owner(plan, implementation));
  const Problem& problem = plan.problem();
  const Shapes shapes{problem, plan.batch()};
  CHORALE_RETURN_IF_ERROR(check_given_with_sinks("sinks", tensors.sinks, problem));
  CHORALE_RETURN_IF_ERROR(check_kv_scales(problem, tensors.k_scale, tensors.v_scale, memory));
  std::vector<NamedView> given{
      {"q", &tensors.q, Access::read, problem.dtype, shapes.query()},
      {"k", &tensors.k, Access::read, problem.kv_dtype_or_default(), shapes.keys()},
      {"v", &tensors.v, Access::read, problem.kv_dtype_or_default(), shapes.values(tensors.k)},
      {"out", &tensors.out, Access::write, problem.dtype, shapes.output()},
  };
  if (!tensors.lse.empty())
    given.push_back({"lse", &tensors.lse, Access::write, DType::float32, shapes.lse()});
  if (problem.sinks) given.push_back({"sinks", &tensors.sinks, Access::read, DType::float32, shapes.sinks()});
  if (problem.has_kv_scales()) {
    given.push_back({"k_scale", &tensors.k_scale, Access::read, DType::float32, {problem.kv_heads}});
    given.push_back({"v_scale", &tensors.v_scale, Access::read, DType::float32, {problem.kv_heads}});
  }
  CHORALE_RETURN_IF_ERROR(check_views(given));
  return memory == Memory::host ? check_pages(plan.batch(), tensors.k.shape[0]) : Status::ok();
}

Status check_backward(const Plan& plan, std::string_view implementation, const BackwardTensors& tensors) {
  CHORALE_RETURN_IF_ERROR(check_owner(plan, implementation));
  const Problem& problem = plan.problem();
  const Shapes shapes{problem, plan.batch()};
  CHORALE_RETURN_IF_ERROR(check_given_with_sinks("sinks", tensors.sinks, problem));
  CHORALE_RETURN_IF_ERROR(check_kv_scales(problem, tensors.k_scale, tensors.v_scale));
  CHORALE_RETURN_IF_ERROR(check_given_with_sinks("grad_sinks", tensors.grad_sinks, problem));
  std::vector<NamedView> given{
      {"q", &tensors.q, Access::read, problem.dtype, shapes.query()},
      {"k", &tensors.k, Access::read, problem.kv_dtype_or_default(), shapes.keys()},
      {"v", &tensors.v, Access::read, problem.kv_dtype_or_default(), shapes.values(tensors.k)},
      {"out", &tensors.out, Access::read, problem.dtype, shapes.output()},
      {"lse", &tensors.lse, Access::read, DType::float32, shapes.lse()},
      {"grad_out", &tensors.grad_out, Access::read, problem.dtype, shapes.output()},
      {"grad_q", &tensors.grad_q, Access::write, problem.dtype, shapes.query()},
      {"grad_k", &tensors.grad_k, Access::write, problem.dtype, shapes.packed(problem.head_dim)},
      {"grad_v", &tensors.grad_v, Access::write, problem.dtype, shapes.packed(problem.value_dim())},
  };
  if (problem.sinks) {
    given.push_back({"sinks", &tensors.sinks, Access::read, DType::float32, shapes.sinks()});
    given.push_back({"grad_sinks", &tensors.grad_sinks, Access::write, DType::float32, shapes.sinks()});
  }
  if (problem.has_kv_scales()) {
    given.push_back({"k_scale", &tensors.k_scale, Access::read, DType::float32, {problem.kv_heads}});
    given.push_back({"v_scale", &tensors.v_scale, Access::read, DType::float32, {problem.kv_heads}});
  }
  CHORALE_RETURN_IF_ERROR(check_views(given));
  return check_pages(plan.batch(), tensors.k.shape[0]);
}

Status check_same_problem(const Plan& plan, const Problem& problem) {
  const Problem& planned = plan.problem();
  const auto check = [](std::string_view field, auto in_plan, auto here) {
    if (in_plan == here) return Status::ok();
    return Status::invalid_argument(fmt::format(
        "the plan was made for another problem: {} is {} in the plan and {} here", field, in_plan, here));
  };
  CHORALE_RETURN_IF_ERROR(check("query_heads", planned.query_heads, problem.query_heads));
  CHORALE_RETURN_IF_ERROR(check("kv_heads", planned.kv_heads, problem.kv_heads));
  CHORALE_RETURN_IF_ERROR(check("head_dim", planned.head_dim, problem.head_dim));
  CHORALE_RETURN_IF_ERROR(check("value_head_dim", planned.value_dim(), problem.value_dim()));
  CHORALE_RETURN_IF_ERROR(check("dtype", name(planned.dtype), name(problem.dtype)));
  CHORALE_RETURN_IF_ERROR(
      check("kv_dtype", name(planned.kv_dtype_or_default()), name(problem.kv_dtype_or_default())));
  CHORALE_RETURN_IF_ERROR(check("scale", planned.scale_or_default(), problem.scale_or_default()));
  CHORALE_RETURN_IF_ERROR(check("sinks", planned.sinks, problem.sinks));
  CHORALE_RETURN_IF_ERROR(check("first_query_head", planned.first_query_head, problem.first_query_head));
  CHORALE_RETURN_IF_ERROR(check_same_rule("mask", planned.mask, problem.mask, plan.batch()));
  return check_same_rule("score", planned.score, problem.score, plan.batch());
}

}  // namespace chorale
