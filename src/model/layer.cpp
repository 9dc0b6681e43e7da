#include "model/layer.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "model/operations.h"
#include "model/parameters.h"

namespace chorale {
namespace {

Linear make_linear(const ModelConfig& config, const ParameterSet& parameters, int layer,
                   LayerParameter which) {
  return {parameters[parameter_index(layer, which)].value, config.compute_dtype};
}
std::vector<float> make_norm(const ModelConfig& config, const ParameterSet& parameters, int layer,
                             LayerParameter which) {
  return rounded_weight(parameters[parameter_index(layer, which)].value, config.compute_dtype);
}

std::int64_t query_size(const ModelConfig& config) {
  return std::int64_t{config.num_attention_heads} * config.head_dim;
}
std::int64_t key_size(const ModelConfig& config) {
  return std::int64_t{config.num_key_value_heads} * config.head_dim;
}
Tensor query_tensor(const ModelConfig& config, std::int64_t rows) {
  return Tensor::zeros(config.compute_dtype, {rows, config.num_attention_heads, config.head_dim});
}
Tensor key_tensor(const ModelConfig& config, std::int64_t rows) {
  return Tensor::zeros(config.compute_dtype, {rows, config.num_key_value_heads, config.head_dim});
}

// A row of a [rows, heads, head_dim] tensor of either type.
void* tensor_row(const Tensor& tensor, std::int64_t row) {
  const TensorView& view = tensor.view();
  return static_cast<std::byte*>(view.data) +
         row * view.stride[0] * static_cast<std::int64_t>(size_of(view.dtype));
}
void load_row(const Tensor& from, std::int64_t row, const RowBuffer& to) {
  simd::to_float(tensor_row(from, row), from.dtype(), to[row], to.columns());
}
void store_row(const RowBuffer& from, std::int64_t row, const Tensor& to) {
  simd::from_float(from[row], to.dtype(), tensor_row(to, row), from.columns());
}

// x += y
void add_rows(const RowBuffer& x, const RowBuffer& y, RowRange range) {
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::add(x[row], y[row], x.columns(), DType::float32, x[row]);
}

}  // namespace

std::vector<float> rounded_weight(const Tensor& weight, DType type) {
  const std::span<const float> values = weight.as<float>();
  std::vector<float> rounded(values.begin(), values.end());
  ops::round(type, rounded.data(), std::ssize(rounded));
  return rounded;
}

LayerRows::LayerRows(const ModelConfig& config, std::int64_t rows, bool with_lse)
    : input(rows, config.hidden_size),
      input_norm(rows, config.hidden_size),
      q_proj(rows, query_size(config)),
      k_proj(rows, key_size(config)),
      q(query_tensor(config, rows)),
      k(key_tensor(config, rows)),
      v(key_tensor(config, rows)),
      out(query_tensor(config, rows)),
      lse(with_lse ? Tensor::zeros(DType::float32, {rows, config.num_attention_heads}) : Tensor()),
      residual_1(rows, config.hidden_size),
      post_norm(rows, config.hidden_size),
      gate(rows, config.intermediate_size),
      up(rows, config.intermediate_size),
      swiglu(rows, config.intermediate_size) {}

LayerScratch::LayerScratch(const ModelConfig& config, std::int64_t rows)
    : v_proj(rows, key_size(config)),
      q_norm(rows, query_size(config)),
      k_norm(rows, key_size(config)),
      attention(rows, query_size(config)),
      o_proj(rows, config.hidden_size),
      down_proj(rows, config.hidden_size) {}

LayerGradients::LayerGradients(const ModelConfig& config, std::int64_t rows)
    : output(rows, config.hidden_size),
      input(rows, config.hidden_size),
      input_norm(rows, config.hidden_size),
      residual_1(rows, config.hidden_size),
      post_norm(rows, config.hidden_size),
      partial(rows, config.hidden_size),
      gate(rows, config.intermediate_size),
      up(rows, config.intermediate_size),
      swiglu(rows, config.intermediate_size),
      attention(rows, query_size(config)),
      attention_values(rows, query_size(config)),
      q_norm(rows, query_size(config)),
      k_norm(rows, key_size(config)),
      q_proj(rows, query_size(config)),
      k_proj(rows, key_size(config)),
      v_proj(rows, key_size(config)),
      out(query_tensor(config, rows)),
      q(query_tensor(config, rows)),
      k(key_tensor(config, rows)),
      v(key_tensor(config, rows)) {}

DecoderLayer::DecoderLayer(const ModelConfig& config, const ParameterSet& parameters, int index)
    : config_(config),
      index_(index),
      q_proj_(make_linear(config, parameters, index, LayerParameter::q_proj)),
      k_proj_(make_linear(config, parameters, index, LayerParameter::k_proj)),
      v_proj_(make_linear(config, parameters, index, LayerParameter::v_proj)),
      o_proj_(make_linear(config, parameters, index, LayerParameter::o_proj)),
      gate_proj_(make_linear(config, parameters, index, LayerParameter::gate_proj)),
      up_proj_(make_linear(config, parameters, index, LayerParameter::up_proj)),
      down_proj_(make_linear(config, parameters, index, LayerParameter::down_proj)),
      q_norm_(make_norm(config, parameters, index, LayerParameter::q_norm)),
      k_norm_(make_norm(config, parameters, index, LayerParameter::k_norm)),
      input_norm_(make_norm(config, parameters, index, LayerParameter::input_norm)),
      post_norm_(make_norm(config, parameters, index, LayerParameter::post_norm)) {}

Status DecoderLayer::forward(LayerRows& rows, const RotaryRows& rotary, LayerScratch& scratch,
                             const RowBuffer& output, LayerAttention& attention, Observer* observer,
                             int threads) const {
  const std::int64_t count = rows.input.rows();
  for_row_blocks(count, threads,
                 [&](RowRange range, int inner) { before_attention(rows, rotary, scratch, range, inner); });
  CHORALE_RETURN_IF_ERROR(attention.forward(index_, rows.q, rows.k, rows.v, rows.out, rows.lse));
  for_row_blocks(count, threads,
                 [&](RowRange range, int inner) { after_attention(rows, scratch, output, range, inner); });
  if (observer == nullptr) return Status::ok();
  const std::pair<std::string_view, TensorView> operations[] = {{"input_norm", rows.input_norm.view()},
                                                                {"q_proj", rows.q_proj.view()},
                                                                {"k_proj", rows.k_proj.view()},
                                                                {"v_proj", scratch.v_proj.view()},
                                                                {"q_norm", scratch.q_norm.view()},
                                                                {"k_norm", scratch.k_norm.view()},
                                                                {"q_rotary", rows.q},
                                                                {"k_rotary", rows.k},
                                                                {"attention", rows.out},
                                                                {"o_proj", scratch.o_proj.view()},
                                                                {"residual_1", rows.residual_1.view()},
                                                                {"post_norm", rows.post_norm.view()},
                                                                {"gate_proj", rows.gate.view()},
                                                                {"up_proj", rows.up.view()},
                                                                {"swiglu", rows.swiglu.view()},
                                                                {"down_proj", scratch.down_proj.view()},
                                                                {"residual_2", output.view()}};
  for (const auto& [operation, view] : operations) observer->record(index_, operation, view);
  return Status::ok();
}

void DecoderLayer::before_attention(LayerRows& rows, const RotaryRows& rotary, LayerScratch& scratch,
                                    RowRange range, int threads) const {
  const DType type = config_.compute_dtype;
  norm(rows.input, input_norm_, range, rows.input_norm);
  q_proj_.forward(rows.input_norm, rows.q_proj, range, type, threads);
  k_proj_.forward(rows.input_norm, rows.k_proj, range, type, threads);
  v_proj_.forward(rows.input_norm, scratch.v_proj, range, type, threads);
  norm_and_rotate(rows.q_proj, q_norm_, rotary, range, scratch.q_norm, rows.q);
  norm_and_rotate(rows.k_proj, k_norm_, rotary, range, scratch.k_norm, rows.k);
  for (std::int64_t row = range.begin; row < range.end; ++row) store_row(scratch.v_proj, row, rows.v);
}

void DecoderLayer::after_attention(LayerRows& rows, LayerScratch& scratch, const RowBuffer& output,
                                   RowRange range, int threads) const {
  const DType type = config_.compute_dtype;
  const std::int64_t hidden = config_.hidden_size;
  for (std::int64_t row = range.begin; row < range.end; ++row) load_row(rows.out, row, scratch.attention);
  o_proj_.forward(scratch.attention, scratch.o_proj, range, type, threads);
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::add(rows.input[row], scratch.o_proj[row], hidden, type, rows.residual_1[row]);
  norm(rows.residual_1, post_norm_, range, rows.post_norm);
  gate_proj_.forward(rows.post_norm, rows.gate, range, type, threads);
  up_proj_.forward(rows.post_norm, rows.up, range, type, threads);
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::swiglu(rows.gate[row], rows.up[row], config_.intermediate_size, type, rows.swiglu[row]);
  down_proj_.forward(rows.swiglu, scratch.down_proj, range, type, threads);
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::add(rows.residual_1[row], scratch.down_proj[row], hidden, type, output[row]);
}

void DecoderLayer::norm(const RowBuffer& x, const std::vector<float>& weight, RowRange range,
                        const RowBuffer& y) const {
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::rms_norm(x[row], weight.data(), x.columns(), config_.rms_norm_eps, config_.compute_dtype, y[row]);
}

void DecoderLayer::norm_and_rotate(const RowBuffer& x, const std::vector<float>& weight,
                                   const RotaryRows& rotary, RowRange range, const RowBuffer& normed,
                                   const Tensor& rotated) const {
  const std::int64_t size = config_.head_dim;
  const DType type = config_.compute_dtype;
  std::array<float, Problem::max_head_dim> head;
  for (std::int64_t row = range.begin; row < range.end; ++row) {
    auto* to = static_cast<std::byte*>(tensor_row(rotated, row));
    for (std::int64_t first = 0; first < x.columns(); first += size) {
      ops::rms_norm(x[row] + first, weight.data(), size, config_.rms_norm_eps, type, normed[row] + first);
      ops::rotate(normed[row] + first, rotary.cosines[row], rotary.sines[row], size, type, head.data());
      simd::from_float(head.data(), type, to + first * static_cast<std::int64_t>(size_of(type)), size);
    }
  }
}

void DecoderLayer::norm_and_rotate_backward(const RowBuffer& x, const std::vector<float>& weight,
                                            const RotaryRows& rotary, RowRange range,
                                            const Tensor& grad_rotated, const RowBuffer& grad_normed,
                                            const RowBuffer& grad_x) const {
  const std::int64_t size = config_.head_dim;
  for (std::int64_t row = range.begin; row < range.end; ++row) {
    load_row(grad_rotated, row,
             grad_x);  // the rotated gradient first; the projection's own takes its place below
    for (std::int64_t first = 0; first < x.columns(); first += size) {
      ops::rotate_backward(grad_x[row] + first, rotary.cosines[row], rotary.sines[row], size,
                           grad_normed[row] + first);
      ops::rms_norm_backward(x[row] + first, weight.data(), size, config_.rms_norm_eps,
                             grad_normed[row] + first, grad_x[row] + first);
    }
  }
}

Status DecoderLayer::backward(const LayerRows& rows, const RotaryRows& rotary, LayerGradients& gradients,
                              LayerAttention& attention, ParameterSet& sums, int threads) const {
  const std::int64_t count = rows.input.rows();
  for_row_blocks(count, threads,
                 [&](RowRange range, int inner) { backward_to_attention(rows, gradients, range, inner); });
  CHORALE_RETURN_IF_ERROR(attention.backward(index_, {.q = rows.q,
                                                      .k = rows.k,
                                                      .v = rows.v,
                                                      .out = rows.out,
                                                      .lse = rows.lse,
                                                      .grad_out = gradients.out,
                                                      .grad_q = gradients.q,
                                                      .grad_k = gradients.k,
                                                      .grad_v = gradients.v}));
  for_row_blocks(count, threads, [&](RowRange range, int inner) {
    backward_from_attention(rows, rotary, gradients, range, inner);
  });
  backward_weights(rows, gradients, sums, threads);
  std::swap(gradients.output, gradients.input);
  return Status::ok();
}

// From the layer's output back through the MLP and o_proj.
void DecoderLayer::backward_to_attention(const LayerRows& rows, LayerGradients& gradients, RowRange range,
                                         int threads) const {
  down_proj_.backward(gradients.output, gradients.swiglu, range, threads);
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::swiglu_backward(rows.gate[row], rows.up[row], config_.intermediate_size, config_.compute_dtype,
                         gradients.swiglu[row], gradients.gate[row], gradients.up[row]);
  gate_proj_.backward(gradients.gate, gradients.post_norm, range, threads);
  up_proj_.backward(gradients.up, gradients.partial, range, threads);
  add_rows(gradients.post_norm, gradients.partial, range);
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::rms_norm_backward(rows.residual_1[row], post_norm_.data(), config_.hidden_size, config_.rms_norm_eps,
                           gradients.post_norm[row], gradients.residual_1[row]);
  add_rows(gradients.residual_1, gradients.output, range);
  o_proj_.backward(gradients.residual_1, gradients.attention, range, threads);
  for (std::int64_t row = range.begin; row < range.end; ++row) {
    store_row(gradients.attention, row, gradients.out);
    load_row(rows.out, row, gradients.attention_values);
  }
}

// From attention's inputs back to the layer's input.
void DecoderLayer::backward_from_attention(const LayerRows& rows, const RotaryRows& rotary,
                                           LayerGradients& gradients, RowRange range, int threads) const {
  norm_and_rotate_backward(rows.q_proj, q_norm_, rotary, range, gradients.q, gradients.q_norm,
                           gradients.q_proj);
  norm_and_rotate_backward(rows.k_proj, k_norm_, rotary, range, gradients.k, gradients.k_norm,
                           gradients.k_proj);
  for (std::int64_t row = range.begin; row < range.end; ++row) load_row(gradients.v, row, gradients.v_proj);
  q_proj_.backward(gradients.q_proj, gradients.input_norm, range, threads);
  k_proj_.backward(gradients.k_proj, gradients.partial, range, threads);
  add_rows(gradients.input_norm, gradients.partial, range);
  v_proj_.backward(gradients.v_proj, gradients.partial, range, threads);
  add_rows(gradients.input_norm, gradients.partial, range);
  for (std::int64_t row = range.begin; row < range.end; ++row)
    ops::rms_norm_backward(rows.input[row], input_norm_.data(), config_.hidden_size, config_.rms_norm_eps,
                           gradients.input_norm[row], gradients.input[row]);
  add_rows(gradients.input, gradients.residual_1, range);
}

void DecoderLayer::backward_weights(const LayerRows& rows, const LayerGradients& gradients,
                                    ParameterSet& sums, int threads) const {
  const auto sum = [&](LayerParameter which) { return sums[parameter_index(index_, which)].value; };
  const float epsilon = config_.rms_norm_eps;
  const DType type = config_.compute_dtype;
  WeightGradients weights;
  weights.add_linear(gradients.q_proj, rows.input_norm, sum(LayerParameter::q_proj));
  weights.add_linear(gradients.k_proj, rows.input_norm, sum(LayerParameter::k_proj));
  weights.add_linear(gradients.v_proj, rows.input_norm, sum(LayerParameter::v_proj));
  weights.add_linear(gradients.residual_1, gradients.attention_values, sum(LayerParameter::o_proj));
  weights.add_linear(gradients.gate, rows.post_norm, sum(LayerParameter::gate_proj));
  weights.add_linear(gradients.up, rows.post_norm, sum(LayerParameter::up_proj));
  weights.add_linear(gradients.output, rows.swiglu, sum(LayerParameter::down_proj));
  weights.add_norm(gradients.q_norm, rows.q_proj, epsilon, type, sum(LayerParameter::q_norm));
  weights.add_norm(gradients.k_norm, rows.k_proj, epsilon, type, sum(LayerParameter::k_norm));
  weights.add_norm(gradients.input_norm, rows.input, epsilon, type, sum(LayerParameter::input_norm));
  weights.add_norm(gradients.post_norm, rows.residual_1, epsilon, type, sum(LayerParameter::post_norm));
  weights.run(threads);
}

void WeightGradients::add_linear(const RowBuffer& grad_y, const RowBuffer& x, const Tensor& gradient) {
  constexpr std::int64_t outputs_per_task = 48;
  for (std::int64_t first = 0; first < grad_y.columns(); first += outputs_per_task)
    tasks_.push_back([=] {
      Linear::backward_weight(grad_y, x, gradient, first,
                              std::min(first + outputs_per_task, grad_y.columns()));
    });
}

void WeightGradients::add_norm(const RowBuffer& grad_y, const RowBuffer& x, float epsilon, DType type,
                               const Tensor& gradient) {
  tasks_.push_back([=] {
    const std::int64_t size = gradient.elements();
    for (std::int64_t row = 0; row < x.rows(); ++row)
      for (std::int64_t first = 0; first < x.columns(); first += size)
        ops::rms_norm_backward_weight(x[row] + first, size, epsilon, type, grad_y[row] + first,
                                      gradient.as<float>().data());
  });
}

void WeightGradients::run(int threads) const {
  parallel_for(std::ssize(tasks_), threads,
               [&](std::int64_t i, int) { tasks_[static_cast<std::size_t>(i)](); });
}

}  // namespace chorale
