// Hugging Face model folders: config.json and model.safetensors, or shards with model.safetensors.index.json.
#pragma once

#include <cstddef>
#include <string>

#include "chorale/status.h"
#include "model/config.h"
#include "model/model.h"

namespace chorale {

struct ModelFolder {
  ModelConfig config;
  ParameterSet parameters;  // float32, converted from what the file stores
};

// Memory-maps the weights. Missing, unknown or misshapen tensors are errors that name the file and the
// tensor.
Result<ModelFolder> load_model_folder(const std::string& path);
// Written aside and renamed. Weights are stored as `dtype`; a file holds at most `shard_bytes` of them.
Status save_model_folder(const std::string& path, const ModelConfig& config, const ParameterSet& parameters,
                         DType dtype = DType::float32, std::size_t shard_bytes = std::size_t{5} << 30);

}  // namespace chorale
