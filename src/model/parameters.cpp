#include "model/parameters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "simd/simd.h"

namespace chorale {
namespace {

struct LayerShape {
  std::string_view name;
  std::vector<std::int64_t> shape;
};

std::array<LayerShape, layer_parameters> layer_shapes(const ModelConfig& config) {
  const std::int64_t hidden = config.hidden_size, intermediate = config.intermediate_size,
                     head = config.head_dim;
  const std::int64_t queries = config.num_attention_heads * head, keys = config.num_key_value_heads * head;
  return {{{"self_attn.q_proj", {queries, hidden}},
           {"self_attn.k_proj", {keys, hidden}},
           {"self_attn.v_proj", {keys, hidden}},
           {"self_attn.o_proj", {hidden, queries}},
           {"self_attn.q_norm", {head}},
           {"self_attn.k_norm", {head}},
           {"mlp.gate_proj", {intermediate, hidden}},
           {"mlp.up_proj", {intermediate, hidden}},
           {"mlp.down_proj", {hidden, intermediate}},
           {"input_layernorm", {hidden}},
           {"post_attention_layernorm", {hidden}}}};
}

// SplitMix64 (Steele et al. 2014): integers only, so the same on every machine.
class UniformSource {
 public:
  explicit UniformSource(std::uint64_t seed) : state_(seed) {}
  // In (-1, 1), never 0, a multiple of 2^-24.
  float next() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return static_cast<float>(static_cast<std::int64_t>(z >> 40) * 2 + 1 - (std::int64_t{1} << 24)) *
           0x1p-24f;
  }

 private:
  std::uint64_t state_;
};

// Marsaglia's polar method. It needs one logarithm, which comes from simd so that its bits are the same
// everywhere.
void fill_normal(std::span<float> values, float deviation, UniformSource& uniform) {
  for (std::size_t i = 0; i < values.size();) {
    const float x = uniform.next(), y = uniform.next();
    const float square = x * x + y * y;
    if (square >= 1.0f) continue;
    float logarithm = 0;
    simd::log(&square, &logarithm, 1);
    const float factor = deviation * std::sqrt(-2.0f * logarithm / square);
    values[i++] = x * factor;
    if (i < values.size()) values[i++] = y * factor;
  }
}

}  // namespace

std::vector<ParameterShape> parameter_shapes(const ModelConfig& config) {
  std::vector<ParameterShape> shapes;
  shapes.push_back({"model.embed_tokens.weight", {config.vocab_size, config.hidden_size}});
  const auto layer_parts = layer_shapes(config);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer)
    for (const LayerShape& part : layer_parts)
      shapes.push_back({fmt::format("model.layers.{}.{}.weight", layer, part.name), part.shape});
  shapes.push_back({"model.norm.weight", {config.hidden_size}});
  if (!config.tie_word_embeddings)
    shapes.push_back({"lm_head.weight", {config.vocab_size, config.hidden_size}});
  return shapes;
}

std::size_t parameter_index(int layer, LayerParameter which) {
  return 1 + static_cast<std::size_t>(layer) * layer_parameters + static_cast<std::size_t>(which);
}
std::size_t final_norm_parameter(const ModelConfig& config) {
  return 1 + static_cast<std::size_t>(config.num_hidden_layers) * layer_parameters;
}
std::size_t lm_head_parameter(const ModelConfig& config) {
  return config.tie_word_embeddings ? embedding_parameter : final_norm_parameter(config) + 1;
}

ParameterSet zero_parameters(const ModelConfig& config) {
  ParameterSet parameters;
  for (ParameterShape& entry : parameter_shapes(config))
    parameters.push_back({std::move(entry.name), Tensor::zeros(DType::float32, entry.shape)});
  return parameters;
}

ParameterSet random_parameters(const ModelConfig& config, std::uint64_t seed) {
  constexpr float deviation = 0.02f;
  UniformSource uniform(seed);
  ParameterSet parameters = zero_parameters(config);
  for (NamedTensor& parameter : parameters) {
    const std::span<float> values = parameter.value.as<float>();
    const bool is_norm = parameter.value.view().rank == 1;
    if (is_norm)
      std::fill(values.begin(), values.end(), 1.0f);
    else
      fill_normal(values, deviation, uniform);
  }
  return parameters;
}

Status check_parameters(const ModelConfig& config, const ParameterSet& parameters, std::string_view what) {
  const std::vector<ParameterShape> expected = parameter_shapes(config);
  if (parameters.size() != expected.size())
    return Status::invalid_argument(
        fmt::format("{}: {} tensors, but the config has {}", what, parameters.size(), expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const TensorView& view = parameters[i].value.view();
    if (parameters[i].name != expected[i].name)
      return Status::invalid_argument(
          fmt::format("{}: tensor {} is {}, but must be {}", what, i, parameters[i].name, expected[i].name));
    const bool same_shape = std::equal(expected[i].shape.begin(), expected[i].shape.end(), view.shape.begin(),
                                       view.shape.begin() + view.rank);
    if (view.empty() || view.dtype != DType::float32 || !same_shape)
      return Status::invalid_argument(fmt::format("{}: {} is {}, but must be float32 [{}]", what,
                                                  expected[i].name, view.describe(),
                                                  fmt::join(expected[i].shape, ", ")));
  }
  return Status::ok();
}

}  // namespace chorale
