// A small random model and its attention, shared by the tests of the rollout.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <optional>
#include <string_view>
#include <vector>

#include "model/model.h"
#include "rollout/generator.h"

namespace chorale {

inline ModelConfig small_config(DType dtype = DType::float32) {
  ModelConfig config;
  config.vocab_size = 37;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 256;
  config.compute_dtype = dtype;
  return config;
}

// Larger weights than at the start of a training, so that the distribution is far from flat.
inline ParameterSet lively_parameters(const ModelConfig& config) {
  ParameterSet parameters = random_parameters(config, 77);
  for (const NamedTensor& parameter : parameters) {
    if (parameter.name.find("norm") != std::string::npos) continue;
    for (float& x : parameter.value.as<float>()) x *= 12;
  }
  return parameters;
}

inline Model small_model(DType dtype = DType::float32, int threads = 1) {
  const ModelConfig config = small_config(dtype);
  return Model::create(config, lively_parameters(config), threads).value();
}

struct AttentionOptions {
  std::string_view implementation = "flash_attention_2";
  int threads = 1;
  std::optional<DType> kv_dtype = {};
};
inline Attention attention(const Model& model, const AttentionOptions& options = {}) {
  Problem problem = model.config().problem();
  problem.kv_dtype = options.kv_dtype;
  return Attention::create(problem, options.implementation, Device::cpu(options.threads),
                           {Phase::forward, Phase::prefill, Phase::decode})
      .value();
}

inline Generator make(const Model& model, const GeneratorConfig& config,
                      const AttentionOptions& options = {}) {
  const auto everywhere =
      LayerAttentions::uniform(attention(model, options), model.config().num_hidden_layers);
  return Generator::create(model, everywhere, config).value();
}

// The first thing in which a completion is not the other, to the bit; "" if there is none.
inline std::string difference(const Completion& expected, const Completion& actual) {
  const std::string request = "request " + std::to_string(expected.id);
  if (expected.id != actual.id) return request + " is request " + std::to_string(actual.id);
  if (expected.tokens != actual.tokens) return request + ": other tokens";
  if (expected.reason != actual.reason) return request + ": another end";
  for (std::size_t i = 0; i < expected.log_probs.size(); ++i)
    if (std::bit_cast<std::uint32_t>(expected.log_probs[i]) !=
        std::bit_cast<std::uint32_t>(actual.log_probs[i]))
      return request + ", token " + std::to_string(i) + ": " + std::to_string(expected.log_probs[i]) +
             " and " + std::to_string(actual.log_probs[i]);
  return "";
}

inline void expect_same(const std::vector<Completion>& expected, const std::vector<Completion>& actual) {
  ASSERT_EQ(expected.size(), actual.size());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(difference(expected[i], actual[i]), "");
}

}  // namespace chorale
