// ModelConfig: the shape of a Qwen3 model, as Hugging Face's config.json says it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "chorale/problem.h"
#include "chorale/status.h"

namespace chorale {

struct ModelConfig {
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int head_dim = 0;
  float rms_norm_eps = 1e-6f;
  float rope_theta = 10000.0f;
  bool tie_word_embeddings = false;
  int max_position_embeddings = 0;
  // What activations and the weights used in products are rounded to: bfloat16, or float32 (no rounding).
  // Sums are float32 and master weights float32 in either case. (config.json: "torch_dtype" or "dtype".)
  DType compute_dtype = DType::float32;
  std::int64_t bos_token_id = -1, eos_token_id = -1;  // -1: none

  Status validate() const;  // names the key, the value, the limit
  static Result<ModelConfig> from_json(std::string_view text, std::string_view file_name);
  std::string to_json() const;  // loadable by Transformers
  Problem problem() const;      // causal attention of these heads
};

}  // namespace chorale
