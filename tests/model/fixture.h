// The models that scripts/make_qwen3_fixture.py made, what Transformers computed with them, and ways to run
// ours.
#pragma once

#include <nlohmann/json.hpp>

#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/files.h"
#include "model/hugging_face.h"
#include "model/model.h"
#include "model/packed_attention.h"

namespace chorale::test {

inline std::string fixture_path(const std::string& variant) {
  return std::string(CHORALE_SOURCE_DIR) + "/tests/fixtures/qwen3_tiny/" + variant;
}

struct Fixture {
  explicit Fixture(const std::string& variant)
      : folder(load_model_folder(fixture_path(variant)).value()),
        expected(nlohmann::json::parse(read_file(fixture_path(variant) + "/expected.json").value())),
        sequences(expected["sequences"].get<std::vector<std::vector<std::int32_t>>>()) {}
  ModelFolder folder;
  nlohmann::json expected;
  std::vector<std::vector<std::int32_t>> sequences;
};

// Sequences laid one after the other, with logits wanted in every row.
struct Packed {
  explicit Packed(const std::vector<std::vector<std::int32_t>>& sequences) {
    for (const auto& sequence : sequences) {
      for (std::size_t i = 0; i < sequence.size(); ++i) positions.push_back(static_cast<std::int32_t>(i));
      tokens.insert(tokens.end(), sequence.begin(), sequence.end());
      cu_seqlens.push_back(static_cast<std::int32_t>(tokens.size()));
    }
    logit_rows.resize(tokens.size());
    std::iota(logit_rows.begin(), logit_rows.end(), 0);
  }
  ModelInputs inputs() const { return {tokens, positions, logit_rows}; }
  PackedAttention attention(const ModelConfig& config, std::string_view implementation = "flash_attention_2",
                            int threads = 0) const {
    return PackedAttention::create(config.problem(), implementation, cu_seqlens, threads).value();
  }
  std::vector<std::int32_t> tokens, positions, logit_rows, cu_seqlens{0};
};

// A small config for tests of our own; sizes are no multiples of a vector.
inline ModelConfig small_config(DType type = DType::float32, bool tied = false) {
  ModelConfig config;
  config.vocab_size = 29, config.hidden_size = 24, config.intermediate_size = 40,
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 12,
  config.max_position_embeddings = 512;
  config.tie_word_embeddings = tied, config.compute_dtype = type;
  return config;
}
// As random_parameters, scaled up so that every operation matters to the logits; norms differ from 1.
inline ParameterSet lively_parameters(const ModelConfig& config, std::uint64_t seed) {
  ParameterSet parameters = random_parameters(config, seed);
  std::size_t count = 0;
  for (NamedTensor& parameter : parameters)
    for (float& value : parameter.value.as<float>()) {
      if (parameter.value.view().rank == 1)
        value = 0.8f + 0.05f * static_cast<float>(count++ % 9);
      else
        value *= 10;
    }
  return parameters;
}

inline std::vector<std::int32_t> random_tokens(int count, int vocab, unsigned seed) {
  std::vector<std::int32_t> tokens;
  for (unsigned state = seed; count > 0; --count) {
    state = state * 1664525u + 1013904223u;
    tokens.push_back(static_cast<std::int32_t>((state >> 8) % static_cast<unsigned>(vocab)));
  }
  return tokens;
}

inline bool same_bits(std::span<const float> x, std::span<const float> y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size_bytes()) == 0;
}

}  // namespace chorale::test
