#include "model/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>

#include "model/layer.h"
#include "model/operations.h"
#include "model/parameters.h"
#include "simd/simd.h"

namespace chorale {

// What backward reads of a forward call, and what both work in.
class Activations {
 public:
  Activations(const ModelConfig& shape, std::int64_t rows)
      : config(shape),
        layers(make_layers(shape, rows)),
        last_residual(rows, shape.hidden_size),
        buffers(shape, rows) {}

  // Whether a forward call of so many rows may use this memory again.
  bool fits(const ModelConfig& shape, std::int64_t rows) const {
    const auto sizes = [](const ModelConfig& c) {
      return std::tuple(c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads,
                        c.num_key_value_heads, c.head_dim, c.compute_dtype);
    };
    return last_residual.rows() == rows && sizes(shape) == sizes(config);
  }

  ModelConfig config;
  std::uint64_t version = 0;  // of the parameters that made them: backward multiplies by the same
  std::vector<std::int32_t> tokens, logit_rows;
  RotaryRows rotary;
  std::vector<LayerActivations> layers;
  RowBuffer last_residual;  // [rows, hidden_size]: what the last norm reads
  mutable LayerRows buffers;
  mutable std::optional<LayerGradients> gradients;

 private:
  static std::vector<LayerActivations> make_layers(const ModelConfig& shape, std::int64_t rows) {
    std::vector<LayerActivations> layers;
    for (int i = 0; i < shape.num_hidden_layers; ++i) layers.emplace_back(shape, rows);
    return layers;
  }
};

struct Model::State {
  State(const ModelConfig& shape, const ParameterSet& parameters, int thread_count);
  void assign(const ParameterSet& parameters);

  ModelConfig config;
  int threads;
  std::uint64_t version = new_version();
  std::vector<double> frequencies;  // [head_dim / 2]
  Tensor embedding;                 // [vocab_size, hidden_size] in the compute type
  std::vector<DecoderLayer> layers;
  std::vector<float> norm;
  Linear lm_head;

 private:
  // Never the same twice.
  static std::uint64_t new_version() {
    static std::atomic<std::uint64_t> latest{0};
    return ++latest;
  }
};

namespace {

// Rounds `weight` into `embedding`, which has its shape.
void round_embedding(const Tensor& weight, int threads, const Tensor& embedding) {
  const std::int64_t columns = weight.shape(1),
                     size = columns * static_cast<std::int64_t>(size_of(embedding.dtype()));
  parallel_for(weight.shape(0), threads, [&](std::int64_t row, int) {
    simd::from_float(weight.as<float>().data() + row * columns, embedding.dtype(),
                     static_cast<std::byte*>(embedding.view().data) + row * size, columns);
  });
}

std::vector<double> rotary_frequencies(const ModelConfig& config) {
  std::vector<double> frequencies;
  for (int i = 0; i < config.head_dim; i += 2)
    frequencies.push_back(
        std::pow(static_cast<double>(config.rope_theta), -static_cast<double>(i) / config.head_dim));
  return frequencies;
}

Status check_inputs(const ModelConfig& config, const ModelInputs& inputs) {
  const auto rows = std::ssize(inputs.tokens);
  if (std::ssize(inputs.positions) != rows)
    return Status::invalid_argument(
        fmt::format("{} positions for {} tokens: must be as many", inputs.positions.size(), rows));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int32_t token = inputs.tokens[row], position = inputs.positions[row];
    if (token < 0 || token >= config.vocab_size)
      return Status::out_of_range(
          fmt::format("token {} of row {}: must be from 0 to {}", token, row, config.vocab_size - 1));
    if (position < 0 || position >= config.max_position_embeddings)
      return Status::out_of_range(
          fmt::format("position {} of row {}: must be from 0 to {} (max_position_embeddings {})", position,
                      row, config.max_position_embeddings - 1, config.max_position_embeddings));
  }
  std::int32_t previous = -1;
  for (const std::int32_t row : inputs.logit_rows) {
    if (row <= previous || row >= rows)
      return Status::out_of_range(
          fmt::format("logit row {} after {}: must ascend and be below {} rows", row, previous, rows));
    previous = row;
  }
  return Status::ok();
}

RotaryRows rotary_rows(const Model& model, std::span<const double> frequencies,
                       std::span<const std::int32_t> positions, int threads) {
  const std::int64_t half = std::ssize(frequencies);
  const RotaryRows rotary{RowBuffer(std::ssize(positions), half), RowBuffer(std::ssize(positions), half)};
  for_row_blocks(std::ssize(positions), threads, [&](RowRange range, int) {
    for (std::int64_t row = range.begin; row < range.end; ++row)
      ops::rotary_angles(positions[row], frequencies.data(), half, model.config().compute_dtype,
                         rotary.cosines[row], rotary.sines[row]);
  });
  return rotary;
}

RowBuffer gather(const RowBuffer& from, std::span<const std::int32_t> rows) {
  const RowBuffer to(std::ssize(rows), from.columns());
  for (std::int64_t i = 0; i < to.rows(); ++i) std::copy_n(from[rows[i]], to.columns(), to[i]);
  return to;
}

// float32 [any rows, columns] with contiguous rows.
Status check_rows(std::string_view what, const TensorView& view, std::int64_t columns) {
  if (view.dtype == DType::float32 && view.rank == 2 && view.shape[1] == columns &&
      (view.stride[1] == 1 || view.elements() == 0))
    return Status::ok();
  return Status::invalid_argument(
      fmt::format("{} {}: must be float32 [rows, {}] with contiguous rows", what, view.describe(), columns));
}

// Without the padding of rows; no copy where there is none.
Tensor contiguous(const RowBuffer& rows) {
  if (rows.stride() == rows.columns()) return rows.memory();
  const Tensor tensor = Tensor::zeros(DType::float32, {rows.rows(), rows.columns()});
  for (std::int64_t row = 0; row < rows.rows(); ++row)
    std::copy_n(rows[row], rows.columns(), tensor.as<float>().data() + row * rows.columns());
  return tensor;
}

}  // namespace

Model::State::State(const ModelConfig& shape, const ParameterSet& parameters, int thread_count)
    : config(shape),
      threads(thread_count > 0 ? thread_count : default_threads()),
      frequencies(rotary_frequencies(shape)),
      embedding(Tensor::zeros(shape.compute_dtype, {shape.vocab_size, shape.hidden_size})),
      norm(rounded_weight(parameters[final_norm_parameter(shape)].value, shape.compute_dtype)),
      lm_head(parameters[lm_head_parameter(shape)].value, shape.compute_dtype, threads) {
  round_embedding(parameters[embedding_parameter].value, threads, embedding);
  layers.reserve(static_cast<std::size_t>(shape.num_hidden_layers));
  for (int layer = 0; layer < shape.num_hidden_layers; ++layer)
    layers.emplace_back(shape, parameters, layer, threads);
}

void Model::State::assign(const ParameterSet& parameters) {
  version = new_version();
  round_embedding(parameters[embedding_parameter].value, threads, embedding);
  norm = rounded_weight(parameters[final_norm_parameter(config)].value, config.compute_dtype);
  lm_head.assign(parameters[lm_head_parameter(config)].value, threads);
  for (DecoderLayer& layer : layers) layer.assign(parameters, threads);
}

Result<Model> Model::create(const ModelConfig& config, const ParameterSet& parameters, int threads) {
  CHORALE_RETURN_IF_ERROR(simd::supported());
  CHORALE_RETURN_IF_ERROR(config.validate());
  CHORALE_RETURN_IF_ERROR(check_parameters(config, parameters, "parameters"));
  return Model(std::make_shared<State>(config, parameters, threads));
}

Status Model::set_parameters(const ParameterSet& parameters) {
  if (state_.use_count() > 1) {
    CHORALE_ASSIGN_OR_RETURN(*this, create(config(), parameters, state_->threads));
    return Status::ok();
  }
  CHORALE_RETURN_IF_ERROR(check_parameters(config(), parameters, "parameters"));
  state_->assign(parameters);
  return Status::ok();
}

const ModelConfig& Model::config() const { return state_->config; }

Result<Tensor> Model::forward(const ModelInputs& inputs, LayerAttention& attention,
                              std::shared_ptr<Activations>* activations, Observer* observer) const {
  CHORALE_ASSIGN_OR_RETURN(const Tensor hidden, forward_hidden(inputs, attention, activations, observer));
  CHORALE_ASSIGN_OR_RETURN(Tensor all, logits(hidden));
  if (observer != nullptr) observer->record(config().num_hidden_layers, "logits", all);
  return all;
}

Result<Tensor> Model::forward_hidden(const ModelInputs& inputs, LayerAttention& attention,
                                     std::shared_ptr<Activations>* activations, Observer* observer) const {
  const ModelConfig& config = state_->config;
  const int threads = state_->threads;
  CHORALE_RETURN_IF_ERROR(check_inputs(config, inputs));
  const std::int64_t rows = std::ssize(inputs.tokens);

  std::shared_ptr<Activations> kept;
  if (activations != nullptr) {
    if (*activations != nullptr && activations->use_count() == 1 && (*activations)->fits(config, rows))
      kept = std::move(*activations);
    else
      kept = std::make_shared<Activations>(config, rows);
    activations->reset();
  }
  LayerRows buffers = kept != nullptr ? kept->buffers : LayerRows(config, rows);
  const RotaryRows rotary = rotary_rows(*this, state_->frequencies, inputs.positions, threads);
  for_each_row({0, rows}, threads, [&](std::int64_t row) {
    const TensorView embedded = state_->embedding.view().slice(0, inputs.tokens[row], inputs.tokens[row] + 1);
    simd::to_float(embedded.data, embedded.dtype, buffers.input[row], config.hidden_size);
  });
  if (observer != nullptr) observer->record(-1, "embed", buffers.input.view());

  for (std::size_t i = 0; i < state_->layers.size(); ++i)
    CHORALE_RETURN_IF_ERROR(state_->layers[i].forward(
        buffers, rotary, kept != nullptr ? &kept->layers[i] : nullptr, attention, observer, threads));

  const RowBuffer norm(rows, config.hidden_size);
  for_each_row({0, rows}, threads, [&](std::int64_t row) {
    ops::rms_norm(buffers.input[row], state_->norm.data(), config.hidden_size, config.rms_norm_eps,
                  config.compute_dtype, norm[row]);
  });
  if (observer != nullptr) observer->record(config.num_hidden_layers, "norm", norm.view());
  if (kept != nullptr) {
    kept->version = state_->version;
    kept->tokens.assign(inputs.tokens.begin(), inputs.tokens.end());
    kept->logit_rows.assign(inputs.logit_rows.begin(), inputs.logit_rows.end());
    kept->rotary = rotary;
    for_each_row({0, rows}, threads, [&](std::int64_t row) {
      std::copy_n(buffers.input[row], config.hidden_size, kept->last_residual[row]);
    });
    *activations = std::move(kept);
  }
  return contiguous(gather(norm, inputs.logit_rows));
}

Result<Tensor> Model::logits(const TensorView& hidden) const {
  const ModelConfig& config = state_->config;
  CHORALE_RETURN_IF_ERROR(check_rows("hidden", hidden, config.hidden_size));
  const RowBuffer logits(hidden.shape[0], config.vocab_size);
  // Logits stay float32: rounding them would cost log-probabilities most of their digits.
  state_->lm_head.forward(RowBuffer::over(hidden), logits, {0, logits.rows()}, DType::float32,
                          state_->threads);
  return contiguous(logits);
}

Status Model::backward(const Activations& activations, const TensorView& grad_logits,
                       LayerAttention& attention, ParameterSet& gradients) const {
  const auto rows = std::ssize(activations.logit_rows);
  if (grad_logits.rank != 2 || grad_logits.shape[0] != rows)
    return Status::invalid_argument(fmt::format("grad_logits {}: must be float32 [{}, {}]",
                                                grad_logits.describe(), rows, state_->config.vocab_size));
  // What the head read, once more.
  const RowBuffer hidden(rows, state_->config.hidden_size);
  for_each_row({0, rows}, state_->threads, [&](std::int64_t i) {
    ops::rms_norm(activations.last_residual[activations.logit_rows[i]], state_->norm.data(),
                  state_->config.hidden_size, state_->config.rms_norm_eps, state_->config.compute_dtype,
                  hidden[i]);
  });
  CHORALE_ASSIGN_OR_RETURN(const Tensor grad_hidden, backward_logits(hidden.view(), grad_logits, gradients));
  return backward_hidden(activations, grad_hidden, attention, gradients);
}

Result<Tensor> Model::backward_logits(const TensorView& hidden, const TensorView& grad_logits,
                                      ParameterSet& gradients) const {
  const ModelConfig& config = state_->config;
  CHORALE_RETURN_IF_ERROR(check_parameters(config, gradients, "gradients"));
  CHORALE_RETURN_IF_ERROR(check_rows("hidden", hidden, config.hidden_size));
  CHORALE_RETURN_IF_ERROR(check_rows("grad_logits", grad_logits, config.vocab_size));
  if (hidden.shape[0] != grad_logits.shape[0])
    return Status::invalid_argument(fmt::format("{} rows of grad_logits: must be {}, as hidden has",
                                                grad_logits.shape[0], hidden.shape[0]));
  const RowBuffer x = RowBuffer::over(hidden), grad = RowBuffer::over(grad_logits);
  const RowBuffer grad_hidden(x.rows(), config.hidden_size);
  state_->lm_head.backward(grad, grad_hidden, {0, grad.rows()}, state_->threads);
  Linear::backward_weight(grad, x, config.compute_dtype, gradients[lm_head_parameter(config)].value,
                          state_->threads);
  return contiguous(grad_hidden);
}

Status Model::backward_hidden(const Activations& activations, const TensorView& grad_hidden,
                              LayerAttention& attention, ParameterSet& gradients) const {
  const ModelConfig& config = state_->config;
  const int threads = state_->threads;
  if (activations.version != state_->version)
    return Status::invalid_argument("activations: must come from this model with its present parameters");
  CHORALE_RETURN_IF_ERROR(check_parameters(config, gradients, "gradients"));
  CHORALE_RETURN_IF_ERROR(check_rows("grad_hidden", grad_hidden, config.hidden_size));
  const std::span<const std::int32_t> logit_rows = activations.logit_rows;
  if (grad_hidden.shape[0] != std::ssize(logit_rows))
    return Status::invalid_argument(
        fmt::format("{} rows of grad_hidden: must be {}, one for each of logit_rows", grad_hidden.shape[0],
                    logit_rows.size()));

  const std::int64_t rows = std::ssize(activations.tokens);
  if (!activations.gradients) activations.gradients.emplace(config, rows);
  LayerGradients& layer_gradients = *activations.gradients;
  // The last norm; rows without logits have no gradient yet.
  for_each_row({0, rows}, threads,
               [&](std::int64_t row) { std::fill_n(layer_gradients.output[row], config.hidden_size, 0.0f); });
  const RowBuffer grad = RowBuffer::over(grad_hidden);
  for_each_row({0, grad.rows()}, threads, [&](std::int64_t i) {
    ops::rms_norm_backward(activations.last_residual[logit_rows[i]], state_->norm.data(), config.hidden_size,
                           config.rms_norm_eps, grad[i], layer_gradients.output[logit_rows[i]]);
  });
  add_norm_gradient(grad, gather(activations.last_residual, logit_rows), config.rms_norm_eps,
                    config.compute_dtype, gradients[final_norm_parameter(config)].value, threads);

  for (std::size_t i = state_->layers.size(); i-- > 0;)
    CHORALE_RETURN_IF_ERROR(state_->layers[i].backward(activations.layers[i], activations.buffers,
                                                       activations.rotary, layer_gradients, attention,
                                                       gradients, threads));
  float* embedding = gradients[embedding_parameter].value.as<float>().data();
  for (std::int64_t row = 0; row < rows; ++row)
    simd::scale_add(layer_gradients.output[row], 1.0f,
                    embedding + std::int64_t{activations.tokens[row]} * config.hidden_size,
                    config.hidden_size);
  return Status::ok();
}

}  // namespace chorale
