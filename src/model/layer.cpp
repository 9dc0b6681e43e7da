#include "model/layer.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "model/operations.h"
#include "model/parameters.h"

namespace chorale {
namespace {

Linear make_linear(const ModelConfig& config, const ParameterSet& parameters, int layer, LayerParameter which,
                   int threads) {
  return {parameters[parameter_index(layer, which)].value, config.compute_dtype, threads};
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

// A row of a tensor of either type, contiguous from its second dimension on.
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
void add_row(const RowBuffer& x, const RowBuffer& y, std::int64_t row) {
  ops::add(x[row], y[row], x.columns(), DType::float32, x[row]);
}

}  // namespace

std::vector<float> rounded_weight(const Tensor& weight, DType type) {
  const std::span<const float> values = weight.as<float>();
  std::vector<float> rounded(values.begin(), values.end());
  ops::round(type, rounded.data(), std::ssize(rounded));
  return rounded;
}

LayerRows::LayerRows(const ModelConfig& config, std::int64_t rows)
    : input(rows, config.hidden_size),
      input_norm(rows, config.hidden_size),
      q_proj(rows, query_size(config)),
      k_proj(rows, key_size(config)),
      v_proj(rows, key_size(config)),
      q_norm(rows, query_size(config)),
      k_norm(rows, key_size(config)),
      q(query_tensor(config, rows)),
      k(key_tensor(config, rows)),
      v(key_tensor(config, rows)),
      out(query_tensor(config, rows)),
      attention(rows, query_size(config)),
      o_proj(rows, config.hidden_size),
      residual_1(rows, config.hidden_size),
      post_norm(rows, config.hidden_size),
      gate(rows, config.intermediate_size),
      up(rows, config.intermediate_size),
      swiglu(rows, config.intermediate_size),
      down_proj(rows, config.hidden_size) {}

LayerActivations::LayerActivations(const ModelConfig& config, std::int64_t rows)
    : input(Tensor::zeros(config.compute_dtype, {rows, config.hidden_size})),
      q_proj(Tensor::zeros(config.compute_dtype, {rows, query_size(config)})),
      k_proj(Tensor::zeros(config.compute_dtype, {rows, key_size(config)})),
      residual_1(Tensor::zeros(config.compute_dtype, {rows, config.hidden_size})),
      gate(Tensor::zeros(config.compute_dtype, {rows, config.intermediate_size})),
      up(Tensor::zeros(config.compute_dtype, {rows, config.intermediate_size})),
      q(query_tensor(config, rows)),
      k(key_tensor(config, rows)),
      v(key_tensor(config, rows)),
      out(query_tensor(config, rows)),
      lse(Tensor::zeros(DType::float32, {rows, config.num_attention_heads})) {}

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
      q_norm(rows, query_size(config)),
      k_norm(rows, key_size(config)),
      q_proj(rows, query_size(config)),
      k_proj(rows, key_size(config)),
      v_proj(rows, key_size(config)),
      out(query_tensor(config, rows)),
      q(query_tensor(config, rows)),
      k(key_tensor(config, rows)),
      v(key_tensor(config, rows)) {}

DecoderLayer::DecoderLayer(const ModelConfig& config, const ParameterSet& parameters, int index, int threads)
    : config_(config),
      index_(index),
      q_proj_(make_linear(config, parameters, index, LayerParameter::q_proj, threads)),
      k_proj_(make_linear(config, parameters, index, LayerParameter::k_proj, threads)),
      v_proj_(make_linear(config, parameters, index, LayerParameter::v_proj, threads)),
      o_proj_(make_linear(config, parameters, index, LayerParameter::o_proj, threads)),
      gate_proj_(make_linear(config, parameters, index, LayerParameter::gate_proj, threads)),
      up_proj_(make_linear(config, parameters, index, LayerParameter::up_proj, threads)),
      down_proj_(make_linear(config, parameters, index, LayerParameter::down_proj, threads)),
      q_norm_(make_norm(config, parameters, index, LayerParameter::q_norm)),
      k_norm_(make_norm(config, parameters, index, LayerParameter::k_norm)),
      input_norm_(make_norm(config, parameters, index, LayerParameter::input_norm)),
      post_norm_(make_norm(config, parameters, index, LayerParameter::post_norm)) {}

void DecoderLayer::assign(const ParameterSet& parameters, int threads) {
  const auto linear = [&](Linear& own, LayerParameter which) {
    own.assign(parameters[parameter_index(index_, which)].value, threads);
  };
  linear(q_proj_, LayerParameter::q_proj);
  linear(k_proj_, LayerParameter::k_proj);
  linear(v_proj_, LayerParameter::v_proj);
  linear(o_proj_, LayerParameter::o_proj);
  linear(gate_proj_, LayerParameter::gate_proj);
  linear(up_proj_, LayerParameter::up_proj);
  linear(down_proj_, LayerParameter::down_proj);
  q_norm_ = make_norm(config_, parameters, index_, LayerParameter::q_norm);
  k_norm_ = make_norm(config_, parameters, index_, LayerParameter::k_norm);
  input_norm_ = make_norm(config_, parameters, index_, LayerParameter::input_norm);
  post_norm_ = make_norm(config_, parameters, index_, LayerParameter::post_norm);
}

Status DecoderLayer::forward(LayerRows& rows, const RotaryRows& rotary, LayerActivations* kept,
                             LayerAttention& attention, Observer* observer, int threads) const {
  const std::int64_t count = rows.input.rows();
  if (kept != nullptr)
    rows.q = kept->q, rows.k = kept->k, rows.v = kept->v, rows.out = kept->out, rows.lse = kept->lse;
  for_row_blocks(count, threads,
                 [&](RowRange range, int inner) { before_attention(rows, rotary, kept, range, inner); });
  CHORALE_RETURN_IF_ERROR(attention.forward(index_, rows.q, rows.k, rows.v, rows.out, rows.lse));
  for_row_blocks(count, threads,
                 [&](RowRange range, int inner) { after_attention(rows, kept, range, inner); });
  if (observer != nullptr) observe(rows, *observer);
  return Status::ok();
}

void DecoderLayer::observe(const LayerRows& rows, Observer& observer) const {
  const std::pair<std::string_view, TensorView> operations[] = {{"input_norm", rows.input_norm.view()},
                                                                {"q_proj", rows.q_proj.view()},
                                                                {"k_proj", rows.k_proj.view()},
                                                                {"v_proj", rows.v_proj.view()},
                                                                {"q_norm", rows.q_norm.view()},
                                                                {"k_norm", rows.k_norm.view()},
                                                                {"q_rotary", rows.q},
                                                                {"k_rotary", rows.k},
                                                                {"attention", rows.out},
                                                                {"o_proj", rows.o_proj.view()},
                                                                {"residual_1", rows.residual_1.view()},
                                                                {"post_norm", rows.post_norm.view()},
                                                                {"gate_proj", rows.gate.view()},
                                                                {"up_proj", rows.up.view()},
                                                                {"swiglu", rows.swiglu.view()},
                                                                {"down_proj", rows.down_proj.view()},
                                                                {"residual_2", rows.input.view()}};
  for (const auto& [operation, view] : operations) observer.record(index_, operation, view);
}

void DecoderLayer::before_attention(const LayerRows& rows, const RotaryRows& rotary, LayerActivations* kept,
                                    RowRange range, int threads) const {
  for_each_row(range, threads,
               [&](std::int64_t row) { norm(rows.input[row], input_norm_, rows.input_norm[row]); });
  Linear::forward(rows.input_norm,
                  {{&q_proj_, &rows.q_proj}, {&k_proj_, &rows.k_proj}, {&v_proj_, &rows.v_proj}}, range,
                  config_.compute_dtype, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    const float *cosines = rotary.cosines[row], *sines = rotary.sines[row];
    norm_and_rotate(rows.q_proj[row], q_norm_, rows.q_proj.columns(), cosines, sines, rows.q_norm[row],
                    tensor_row(rows.q, row));
    norm_and_rotate(rows.k_proj[row], k_norm_, rows.k_proj.columns(), cosines, sines, rows.k_norm[row],
                    tensor_row(rows.k, row));
    store_row(rows.v_proj, row, rows.v);
    if (kept == nullptr) return;
    store_row(rows.input, row, kept->input);
    store_row(rows.q_proj, row, kept->q_proj);
    store_row(rows.k_proj, row, kept->k_proj);
  });
}

void DecoderLayer::after_attention(const LayerRows& rows, LayerActivations* kept, RowRange range,
                                   int threads) const {
  const DType type = config_.compute_dtype;
  const std::int64_t hidden = config_.hidden_size;
  for_each_row(range, threads, [&](std::int64_t row) { load_row(rows.out, row, rows.attention); });
  o_proj_.forward(rows.attention, rows.o_proj, range, type, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    ops::add(rows.input[row], rows.o_proj[row], hidden, type, rows.residual_1[row]);
    norm(rows.residual_1[row], post_norm_, rows.post_norm[row]);
  });
  Linear::forward(rows.post_norm, {{&gate_proj_, &rows.gate}, {&up_proj_, &rows.up}}, range, type, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    ops::swiglu(rows.gate[row], rows.up[row], config_.intermediate_size, type, rows.swiglu[row]);
    if (kept == nullptr) return;
    store_row(rows.residual_1, row, kept->residual_1);
    store_row(rows.gate, row, kept->gate);
    store_row(rows.up, row, kept->up);
  });
  down_proj_.forward(rows.swiglu, rows.down_proj, range, type, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    ops::add(rows.residual_1[row], rows.down_proj[row], hidden, type, rows.input[row]);
  });
}

void DecoderLayer::norm(const float* x, const std::vector<float>& weight, float* y) const {
  ops::rms_norm(x, weight.data(), std::ssize(weight), config_.rms_norm_eps, config_.compute_dtype, y);
}

void DecoderLayer::norm_and_rotate(const float* x, const std::vector<float>& weight, std::int64_t columns,
                                   const float* cosines, const float* sines, float* normed,
                                   void* rotated) const {
  const std::int64_t size = config_.head_dim;
  const DType type = config_.compute_dtype;
  std::array<float, Problem::max_head_dim> head;
  for (std::int64_t first = 0; first < columns; first += size) {
    norm(x + first, weight, normed + first);
    ops::rotate(normed + first, cosines, sines, size, type, head.data());
    simd::from_float(head.data(), type,
                     static_cast<std::byte*>(rotated) + first * static_cast<std::int64_t>(size_of(type)),
                     size);
  }
}

// grad_x holds the gradient of what was rotated; the projection's own takes its place.
void DecoderLayer::norm_and_rotate_backward(const float* x, const std::vector<float>& weight,
                                            std::int64_t columns, const float* cosines, const float* sines,
                                            float* grad_normed, float* grad_x) const {
  const std::int64_t size = config_.head_dim;
  for (std::int64_t first = 0; first < columns; first += size) {
    ops::rotate_backward(grad_x + first, cosines, sines, size, grad_normed + first);
    ops::rms_norm_backward(x + first, weight.data(), size, config_.rms_norm_eps, grad_normed + first,
                           grad_x + first);
  }
}

Status DecoderLayer::backward(const LayerActivations& kept, LayerRows& rows, const RotaryRows& rotary,
                              LayerGradients& gradients, LayerAttention& attention, ParameterSet& sums,
                              int threads) const {
  const std::int64_t count = rows.input.rows();
  for (const Linear* linear : {&q_proj_, &k_proj_, &v_proj_, &o_proj_, &gate_proj_, &up_proj_, &down_proj_})
    linear->prepare_backward(threads);
  for_row_blocks(count, threads, [&](RowRange range, int inner) {
    backward_to_attention(kept, rows, gradients, range, inner);
  });
  CHORALE_RETURN_IF_ERROR(attention.backward(index_, {.q = kept.q,
                                                      .k = kept.k,
                                                      .v = kept.v,
                                                      .out = kept.out,
                                                      .lse = kept.lse,
                                                      .grad_out = gradients.out,
                                                      .grad_q = gradients.q,
                                                      .grad_k = gradients.k,
                                                      .grad_v = gradients.v}));
  for_row_blocks(count, threads, [&](RowRange range, int inner) {
    backward_from_attention(kept, rows, rotary, gradients, range, inner);
  });
  backward_weights(rows, gradients, sums, threads);
  std::swap(gradients.output, gradients.input);
  return Status::ok();
}

// From the layer's output back through the MLP and o_proj.
void DecoderLayer::backward_to_attention(const LayerActivations& kept, const LayerRows& rows,
                                         LayerGradients& gradients, RowRange range, int threads) const {
  const DType type = config_.compute_dtype;
  down_proj_.backward(gradients.output, gradients.swiglu, range, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    load_row(kept.gate, row, rows.gate);
    load_row(kept.up, row, rows.up);
    ops::swiglu(rows.gate[row], rows.up[row], config_.intermediate_size, type, rows.swiglu[row]);
    ops::swiglu_backward(rows.gate[row], rows.up[row], config_.intermediate_size, type, gradients.swiglu[row],
                         gradients.gate[row], gradients.up[row]);
  });
  gate_proj_.backward(gradients.gate, gradients.post_norm, range, threads);
  up_proj_.backward(gradients.up, gradients.partial, range, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    load_row(kept.residual_1, row, rows.residual_1);
    norm(rows.residual_1[row], post_norm_, rows.post_norm[row]);
    add_row(gradients.post_norm, gradients.partial, row);
    ops::rms_norm_backward(rows.residual_1[row], post_norm_.data(), config_.hidden_size, config_.rms_norm_eps,
                           gradients.post_norm[row], gradients.residual_1[row]);
    add_row(gradients.residual_1, gradients.output, row);
  });
  o_proj_.backward(gradients.residual_1, gradients.attention, range, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    store_row(gradients.attention, row, gradients.out);
    load_row(kept.out, row, rows.attention);
  });
}

// From attention's inputs back to the layer's input.
void DecoderLayer::backward_from_attention(const LayerActivations& kept, const LayerRows& rows,
                                           const RotaryRows& rotary, LayerGradients& gradients,
                                           RowRange range, int threads) const {
  for_each_row(range, threads, [&](std::int64_t row) {
    const float *cosines = rotary.cosines[row], *sines = rotary.sines[row];
    load_row(kept.q_proj, row, rows.q_proj);
    load_row(kept.k_proj, row, rows.k_proj);
    load_row(gradients.q, row, gradients.q_proj);
    load_row(gradients.k, row, gradients.k_proj);
    load_row(gradients.v, row, gradients.v_proj);
    norm_and_rotate_backward(rows.q_proj[row], q_norm_, rows.q_proj.columns(), cosines, sines,
                             gradients.q_norm[row], gradients.q_proj[row]);
    norm_and_rotate_backward(rows.k_proj[row], k_norm_, rows.k_proj.columns(), cosines, sines,
                             gradients.k_norm[row], gradients.k_proj[row]);
  });
  q_proj_.backward(gradients.q_proj, gradients.input_norm, range, threads);
  k_proj_.backward(gradients.k_proj, gradients.partial, range, threads);
  for_each_row(range, threads,
               [&](std::int64_t row) { add_row(gradients.input_norm, gradients.partial, row); });
  v_proj_.backward(gradients.v_proj, gradients.partial, range, threads);
  for_each_row(range, threads, [&](std::int64_t row) {
    load_row(kept.input, row, rows.input);
    norm(rows.input[row], input_norm_, rows.input_norm[row]);
    add_row(gradients.input_norm, gradients.partial, row);
    ops::rms_norm_backward(rows.input[row], input_norm_.data(), config_.hidden_size, config_.rms_norm_eps,
                           gradients.input_norm[row], gradients.input[row]);
    add_row(gradients.input, gradients.residual_1, row);
  });
}

void DecoderLayer::backward_weights(const LayerRows& rows, const LayerGradients& gradients,
                                    ParameterSet& sums, int threads) const {
  const DType type = config_.compute_dtype;
  const auto linear = [&](const RowBuffer& grad_y, const RowBuffer& x, LayerParameter which) {
    Linear::backward_weight(grad_y, x, type, sums[parameter_index(index_, which)].value, threads);
  };
  const auto norm = [&](const RowBuffer& grad_y, const RowBuffer& x, LayerParameter which) {
    add_norm_gradient(grad_y, x, config_.rms_norm_eps, type, sums[parameter_index(index_, which)].value,
                      threads);
  };
  linear(gradients.q_proj, rows.input_norm, LayerParameter::q_proj);
  linear(gradients.k_proj, rows.input_norm, LayerParameter::k_proj);
  linear(gradients.v_proj, rows.input_norm, LayerParameter::v_proj);
  linear(gradients.residual_1, rows.attention, LayerParameter::o_proj);
  linear(gradients.gate, rows.post_norm, LayerParameter::gate_proj);
  linear(gradients.up, rows.post_norm, LayerParameter::up_proj);
  linear(gradients.output, rows.swiglu, LayerParameter::down_proj);
  norm(gradients.q_norm, rows.q_proj, LayerParameter::q_norm);
  norm(gradients.k_norm, rows.k_proj, LayerParameter::k_norm);
  norm(gradients.input_norm, rows.input, LayerParameter::input_norm);
  norm(gradients.post_norm, rows.residual_1, LayerParameter::post_norm);
}

// A task is some of the norm's elements, over all rows: each element's chain stays with one thread. Each
// vector's scale is wanted by every task, so it is computed first.
void add_norm_gradient(const RowBuffer& grad_y, const RowBuffer& x, float epsilon, DType type,
                       const Tensor& gradient, int threads) {
  constexpr std::int64_t columns_per_task = 64;
  const std::int64_t size = gradient.elements(), vectors = x.columns() / size;
  const RowBuffer factors(x.rows(), vectors);
  for_row_blocks(x.rows(), threads, [&](RowRange range, int) {
    for (std::int64_t row = range.begin; row < range.end; ++row)
      for (std::int64_t i = 0; i < vectors; ++i)
        factors[row][i] = ops::inverse_root_mean_square(x[row] + i * size, size, epsilon);
  });
  float* sum = gradient.as<float>().data();
  parallel_for((size + columns_per_task - 1) / columns_per_task, threads, [&](std::int64_t task, int) {
    const std::int64_t first = task * columns_per_task, count = std::min(columns_per_task, size - first);
    for (std::int64_t row = 0; row < x.rows(); ++row)
      for (std::int64_t i = 0; i < vectors; ++i)
        ops::rms_norm_backward_weight(x[row] + i * size + first, count, factors[row][i], type,
                                      grad_y[row] + i * size + first, sum + first);
  });
}

}  // namespace chorale
