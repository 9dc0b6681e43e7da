// RunConfig: everything about a training run that a configuration file says, attention aside (that is
// Roles').
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "chorale/status.h"
#include "model/config.h"
#include "rl/grpo.h"
#include "rl/task.h"
#include "roles/config.h"
#include "rollout/generator.h"
#include "trainer/adamw.h"

namespace chorale {

struct RunConfig {
  std::string name = "run";
  std::uint64_t seed = 1;
  int threads = 0;
  ModelConfig model;
  TaskConfig task;

  // Supervised steps from random weights, until the model answers at all.
  struct Warmup {
    int steps = 0;
    int prompts = 64;
    float learning_rate = 1e-3f;
  } warmup;

  GrpoConfig loss;
  struct Grpo {
    int steps = 100;
    int prompts = 32;     // of a step
    int group_size = 8;   // answers to each prompt
    int epochs = 1;       // times that a step's answers are learnt from
    int minibatches = 1;  // optimiser steps of an epoch
  } grpo;

  struct Rollout {
    float temperature = 1;
    int page_size = 16;
    std::int64_t pages = 1024;
    int max_running = 256;                 // sequences at a time
    int tokens_per_step = 2048;            // prompt and answer tokens of one forward pass of the generator
    std::string preemption = "recompute";  // or "swap"
    std::string kv_cache_dtype =
        "auto";                // as the model computes; or "float8_e4m3", which every role then replays
    float kv_cache_scale = 1;  // of 8-bit keys and values, in every layer and head
  } rollout;

  AdamWConfig optimizer;

  struct Trainer {
    std::int64_t tokens_per_pack = 4096;
    int save_every = 0;      // GRPO steps between checkpoints; 0: only when interrupted
    int evaluate_every = 0;  // GRPO steps between evaluations; 0: only before and after
    int evaluation_prompts = 500;
  } trainer;

  bool has_8_bit_cache() const { return rollout.kv_cache_dtype != "auto"; }
  // As in KvCacheConfig: one for each layer and KV head, or none.
  std::vector<float> kv_scales() const;
  // What `rollout` says, for this model.
  GeneratorConfig generator() const;

  // Reads every key below, and marks the keys of Roles as known. Errors name the file, the line and the key.
  static Result<RunConfig> read(const Config& config);
  // The keys of `rollout` alone, of a file that may describe a whole run: for who has a model folder and no
  // run. Pages are 0 where the file does not say. Call it last: it refuses keys that nobody asked for.
  static Result<RunConfig> read_rollout(const Config& config);
};

// One key of the file: where it is kept, what it may be, what it means. The list of them is the only place
// that names keys: the reader, the report, the check of a checkpoint's configuration and the test of
// docs/training.md go by it.
struct Setting {
  std::string_view key;
  std::variant<std::string*, bool*, int*, std::int64_t*, std::uint64_t*, float*, double*, DType*> value;
  double least = 0, most = 0;  // of numbers, both allowed
  bool decides_bits = true;    // false: may differ between a checkpoint and the run that resumes it
  std::string text() const;    // the value, so that equal texts mean equal values
};
std::vector<Setting> settings(RunConfig& config);

// Key and value of every setting that decides bits.
std::map<std::string, std::string> identity(const RunConfig& config);

}  // namespace chorale
