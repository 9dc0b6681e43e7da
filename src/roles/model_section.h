// The `model:` section of a configuration: the problem that its layers compute.
#pragma once

#include "chorale/problem.h"
#include "chorale/status.h"
#include "roles/config.h"

namespace chorale {

struct ModelSection {
  Problem problem;
  int layers = 0;
};

// Hugging Face's names (num_attention_heads, ...) from the section itself, and from config.json in the folder
// `path` for those that the section leaves out; besides mask (default: causal), score, scale, sinks,
// value_head_dim, tables.
Result<ModelSection> read_model_section(const ConfigNode& section);

}  // namespace chorale
