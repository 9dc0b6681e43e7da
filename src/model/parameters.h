// Parameters: the names, shapes and order of a config's tensors, and where each lies in a ParameterSet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/status.h"
#include "model/config.h"
#include "model/model.h"

namespace chorale {

// A layer's parameters, in their order inside a ParameterSet.
enum class LayerParameter {
  q_proj,
  k_proj,
  v_proj,
  o_proj,
  q_norm,
  k_norm,
  gate_proj,
  up_proj,
  down_proj,
  input_norm,
  post_norm,
};
inline constexpr int layer_parameters = 11;

struct ParameterShape {
  std::string name;
  std::vector<std::int64_t> shape;
};
// embed_tokens, every layer's parameters, the last norm, and lm_head unless it is tied.
std::vector<ParameterShape> parameter_shapes(const ModelConfig& config);

inline constexpr std::size_t embedding_parameter = 0;
std::size_t parameter_index(int layer, LayerParameter which);
std::size_t final_norm_parameter(const ModelConfig& config);
std::size_t lm_head_parameter(const ModelConfig& config);  // the embedding's where it is tied

// ok if these are the config's names and shapes, as contiguous float32; else what differs first. `what` names
// the set.
Status check_parameters(const ModelConfig& config, const ParameterSet& parameters, std::string_view what);

}  // namespace chorale
