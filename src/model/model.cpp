#include "model/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "model/layer.h"
#include "model/operations.h"
#include "model/parameters.h"
#include "simd/simd.h"

namespace chorale {

// What backward reads of a forward call.
class Activations {
 public:
  std::shared_ptr<const void>
      state;  // of the model that made them: its weights are what backward multiplies by
  std::vector<std::int32_t> tokens, logit_rows;
  RotaryRows rotary;
  std::vector<LayerRows> layers;
  RowBuffer last_residual;  // [rows, hidden_size]: what the last norm reads
  RowBuffer logit_norm;     // [logit_rows, hidden_size]: what lm_head reads
};

struct Model::State {
  State(const ModelConfig& shape, const ParameterSet& parameters, int thread_count);

  ModelConfig config;
  int threads;
  std::vector<double> frequencies;  // [head_dim / 2]
  RowBuffer embedding;              // [vocab_size, hidden_size]
  std::vector<DecoderLayer> layers;
  std::vector<float> norm;
  Linear lm_head;
};

namespace {

RowBuffer make_embedding(const Tensor& weight, DType type) {
  RowBuffer rows(weight.shape(0), weight.shape(1));
  for (std::int64_t row = 0; row < rows.rows(); ++row) {
    std::copy_n(weight.as<float>().data() + row * rows.columns(), rows.columns(), rows[row]);
    ops::round(type, rows[row], rows.columns());
  }
  return rows;
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
  RowBuffer to(std::ssize(rows), from.columns());
  for (std::int64_t i = 0; i < to.rows(); ++i) std::copy_n(from[rows[i]], to.columns(), to[i]);
  return to;
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
      embedding(make_embedding(parameters[embedding_parameter].value, shape.compute_dtype)),
      norm(rounded_weight(parameters[final_norm_parameter(shape)].value, shape.compute_dtype)),
      lm_head(parameters[lm_head_parameter(shape)].value, shape.compute_dtype) {
  layers.reserve(static_cast<std::size_t>(shape.num_hidden_layers));
  for (int layer = 0; layer < shape.num_hidden_layers; ++layer) layers.emplace_back(shape, parameters, layer);
}

Result<Model> Model::create(const ModelConfig& config, const ParameterSet& parameters, int threads) {
  CHORALE_RETURN_IF_ERROR(simd::supported());
  CHORALE_RETURN_IF_ERROR(config.validate());
  CHORALE_RETURN_IF_ERROR(check_parameters(config, parameters, "parameters"));
  return Model(std::make_shared<const State>(config, parameters, threads));
}

Status Model::set_parameters(const ParameterSet& parameters) {
  CHORALE_ASSIGN_OR_RETURN(*this, create(config(), parameters, state_->threads));
  return Status::ok();
}

const ModelConfig& Model::config() const { return state_->config; }

Result<Tensor> Model::forward(const ModelInputs& inputs, LayerAttention& attention,
                              std::shared_ptr<Activations>* activations, Observer* observer) const {
  const ModelConfig& config = state_->config;
  const int threads = state_->threads;
  CHORALE_RETURN_IF_ERROR(check_inputs(config, inputs));
  const std::int64_t rows = std::ssize(inputs.tokens);
  const bool keep = activations != nullptr;

  // Without activations to keep, all layers use one set of buffers and the residual stream stays in its
  // input.
  std::vector<LayerRows> layer_rows;
  for (int i = 0; i < (keep ? config.num_hidden_layers : 1); ++i) layer_rows.emplace_back(config, rows, keep);
  LayerScratch scratch(config, rows);
  const RowBuffer last_residual = keep ? RowBuffer(rows, config.hidden_size) : layer_rows[0].input;

  const RotaryRows rotary = rotary_rows(*this, state_->frequencies, inputs.positions, threads);
  const RowBuffer& embed = layer_rows[0].input;
  for (std::int64_t row = 0; row < rows; ++row)
    std::copy_n(state_->embedding[inputs.tokens[row]], config.hidden_size, embed[row]);
  if (observer != nullptr) observer->record(-1, "embed", embed.view());

  for (std::size_t i = 0; i < state_->layers.size(); ++i) {
    LayerRows& buffers = layer_rows[keep ? i : 0];
    const RowBuffer& output = keep && i + 1 < layer_rows.size() ? layer_rows[i + 1].input : last_residual;
    CHORALE_RETURN_IF_ERROR(
        state_->layers[i].forward(buffers, rotary, scratch, output, attention, observer, threads));
  }

  const RowBuffer norm(rows, config.hidden_size);
  for_row_blocks(rows, threads, [&](RowRange range, int) {
    for (std::int64_t row = range.begin; row < range.end; ++row)
      ops::rms_norm(last_residual[row], state_->norm.data(), config.hidden_size, config.rms_norm_eps,
                    config.compute_dtype, norm[row]);
  });
  const RowBuffer logit_norm = gather(norm, inputs.logit_rows);
  const RowBuffer logits(logit_norm.rows(), config.vocab_size);
  // Logits stay float32: rounding them would cost log-probabilities most of their digits.
  state_->lm_head.forward(logit_norm, logits, {0, logits.rows()}, DType::float32, threads);
  if (observer != nullptr) {
    observer->record(config.num_hidden_layers, "norm", norm.view());
    observer->record(config.num_hidden_layers, "logits", logits.view());
  }
  if (keep)
    *activations =
        std::make_shared<Activations>(Activations{state_,
                                                  {inputs.tokens.begin(), inputs.tokens.end()},
                                                  {inputs.logit_rows.begin(), inputs.logit_rows.end()},
                                                  rotary,
                                                  std::move(layer_rows),
                                                  last_residual,
                                                  logit_norm});
  return contiguous(logits);
}

Status Model::backward(const Activations& activations, const TensorView& grad_logits,
                       LayerAttention& attention, ParameterSet& gradients) const {
  const ModelConfig& config = state_->config;
  if (activations.state != state_)
    return Status::invalid_argument("activations: must come from this model with its present parameters");
  CHORALE_RETURN_IF_ERROR(check_parameters(config, gradients, "gradients"));
  const std::int64_t logit_rows = activations.logit_norm.rows();
  if (grad_logits.dtype != DType::float32 || grad_logits.rank != 2 || grad_logits.shape[0] != logit_rows ||
      grad_logits.shape[1] != config.vocab_size)
    return Status::invalid_argument(fmt::format("grad_logits {}: must be float32 [{}, {}]",
                                                grad_logits.describe(), logit_rows, config.vocab_size));

  const std::int64_t rows = std::ssize(activations.tokens);
  LayerGradients layer_gradients(config, rows);
  backward_head(activations, grad_logits, layer_gradients.output, gradients);
  for (std::size_t i = state_->layers.size(); i-- > 0;)
    CHORALE_RETURN_IF_ERROR(state_->layers[i].backward(
        activations.layers[i], activations.rotary, layer_gradients, attention, gradients, state_->threads));
  float* embedding = gradients[embedding_parameter].value.as<float>().data();
  for (std::int64_t row = 0; row < rows; ++row)
    simd::scale_add(layer_gradients.output[row], 1.0f,
                    embedding + std::int64_t{activations.tokens[row]} * config.hidden_size,
                    config.hidden_size);
  return Status::ok();
}

// lm_head and the last norm; rows without logits have no gradient yet.
void Model::backward_head(const Activations& activations, const TensorView& grad_logits,
                          const RowBuffer& grad_residual, ParameterSet& gradients) const {
  const ModelConfig& config = state_->config;
  const std::span<const std::int32_t> logit_rows = activations.logit_rows;
  const RowBuffer grad(std::ssize(logit_rows), config.vocab_size), grad_norm(grad.rows(), config.hidden_size);
  for (std::int64_t i = 0; i < grad.rows(); ++i)
    for (std::int64_t j = 0; j < grad.columns(); ++j)
      grad[i][j] =
          static_cast<const float*>(grad_logits.data)[i * grad_logits.stride[0] + j * grad_logits.stride[1]];
  for_row_blocks(grad.rows(), state_->threads, [&](RowRange range, int threads) {
    state_->lm_head.backward(grad, grad_norm, range, threads);
    for (std::int64_t i = range.begin; i < range.end; ++i)
      ops::rms_norm_backward(activations.last_residual[logit_rows[i]], state_->norm.data(),
                             config.hidden_size, config.rms_norm_eps, grad_norm[i],
                             grad_residual[logit_rows[i]]);
  });
  WeightGradients weights;
  weights.add_linear(grad, activations.logit_norm, gradients[lm_head_parameter(config)].value);
  weights.add_norm(grad_norm, gather(activations.last_residual, logit_rows), config.rms_norm_eps,
                   config.compute_dtype, gradients[final_norm_parameter(config)].value);
  weights.run(state_->threads);
}

}  // namespace chorale
