// Trainer: log-probabilities of packed sequences, gradients of any loss over them, optimiser steps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chorale/status.h"
#include "model/model.h"
#include "trainer/adamw.h"
#include "trainer/packed_attention.h"
#include "trainer/packing.h"

namespace chorale {

struct ScoringConfig {
  float temperature = 1;  // the sampler's: log-probabilities are of the distribution it drew from
  std::int64_t tokens_per_pack = 4096;  // a forward pass takes at most so many; longer sequences go alone
  int threads = 0;
};

// The log-probability of each answer token (in count_answer_tokens' order), by packed forward passes. What a
// trainer and a reference model both are, as long as nothing is learnt.
Result<std::vector<float>> answer_log_probs(const Model& model, PackedAttention& attention,
                                            std::span<const TrainingSequence> sequences,
                                            const ScoringConfig& config);

// What one answer token adds to the loss, and the derivative of that by its log-probability.
struct TokenLoss {
  double loss = 0;
  float gradient = 0;
};
// `token` counts answer tokens through all sequences of the step. Called in that order, from one thread.
using LossFunction = std::function<TokenLoss(std::size_t token, float log_prob)>;

struct StepResult {
  double loss = 0;           // the sum of the tokens' losses
  double gradient_norm = 0;  // before clipping
};

// Deep copy: Tensors share their memory when copied.
ParameterSet clone(const ParameterSet& parameters);

// A model being trained: master weights, the model that computes with them, attention and optimiser.
class Trainer {
 public:
  // `parameters` are copied.
  static Result<Trainer> create(const ModelConfig& model, const ParameterSet& parameters,
                                PackedAttention attention, const ScoringConfig& scoring,
                                const AdamWConfig& optimizer);

  // At the temperature of the scoring configuration, or at another.
  Result<std::vector<float>> log_probs(std::span<const TrainingSequence> sequences, float temperature) {
    ScoringConfig scoring = scoring_;
    scoring.temperature = temperature;
    return answer_log_probs(model_, attention_, sequences, scoring);
  }
  // One optimiser step on the sum of the loss over all answer tokens. Gradients are accumulated over packs in
  // order.
  Result<StepResult> step(std::span<const TrainingSequence> sequences, const LossFunction& loss);
  // Forgets the moments and goes on with other settings: a new phase of training.
  Status set_optimizer(const AdamWConfig& config);

  const Model& model() const { return model_; }
  const ParameterSet& parameters() const { return parameters_; }
  const AdamW& optimizer() const { return optimizer_; }

  // Weights, moments and counters as files of an existing folder, and back; everything that the next step
  // depends on. Each file is written aside and renamed; for the folder as a whole see AtomicFolder.
  Status save(const std::string& folder) const;
  // Fails, with nothing changed, if the folder is incomplete or of another model.
  Status restore(const std::string& folder);

 private:
  Trainer(Model model, ParameterSet parameters, PackedAttention attention, const ScoringConfig& scoring,
          AdamW optimizer);
  Status accumulate(std::span<const TrainingSequence> sequences, std::size_t first_token,
                    const LossFunction& loss, double& total);

  Model model_;
  ParameterSet parameters_, gradients_;
  std::shared_ptr<Activations>
      activations_;  // of the last pack: its memory, for a next one of as many tokens
  PackedAttention attention_;
  ScoringConfig scoring_;
  AdamW optimizer_;
};

}  // namespace chorale
