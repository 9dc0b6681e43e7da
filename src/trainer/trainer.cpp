#include "trainer/trainer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/threads.h"
#include "model/log_prob.h"

namespace chorale {
namespace {

// The logits that predict a pack's answer tokens. With `activations`, keeps what backward needs.
Result<Tensor> forward(const Model& model, PackedAttention& attention, const Pack& pack,
                       std::shared_ptr<Activations>* activations) {
  CHORALE_RETURN_IF_ERROR(attention.plan(pack.cu_seqlens));
  return model.forward({.tokens = pack.tokens, .positions = pack.positions, .logit_rows = pack.logit_rows},
                       attention, activations);
}

std::vector<float> log_probs_of(const Tensor& logits, const Pack& pack, const ScoringConfig& config) {
  const std::int64_t vocab = logits.shape(1);
  std::vector<float> log_probs(pack.targets.size());
  parallel_for(static_cast<std::int64_t>(pack.targets.size()), config.threads, [&](std::int64_t i, int) {
    log_probs[i] =
        token_log_prob(logits.as<float>().data() + i * vocab, vocab, config.temperature, pack.targets[i]);
  });
  return log_probs;
}

}  // namespace

Result<std::vector<float>> answer_log_probs(const Model& model, PackedAttention& attention,
                                            std::span<const TrainingSequence> sequences,
                                            const ScoringConfig& config) {
  std::vector<float> all;
  for (const auto& [first, last] : split_by_tokens(sequences, config.tokens_per_pack)) {
    CHORALE_ASSIGN_OR_RETURN(const Pack pack, chorale::pack(sequences.subspan(first, last - first)));
    if (pack.targets.empty()) continue;
    CHORALE_ASSIGN_OR_RETURN(const Tensor logits, forward(model, attention, pack, nullptr));
    const std::vector<float> log_probs = log_probs_of(logits, pack, config);
    all.insert(all.end(), log_probs.begin(), log_probs.end());
  }
  return all;
}

ParameterSet clone(const ParameterSet& parameters) {
  ParameterSet copy = parameters;
  for (NamedTensor& tensor : copy) tensor.value = tensor.value.clone();
  return copy;
}

Trainer::Trainer(Model model, ParameterSet parameters, PackedAttention attention,
                 const ScoringConfig& scoring, AdamW optimizer)
    : model_(std::move(model)),
      parameters_(std::move(parameters)),
      gradients_(zero_parameters(model_.config())),
      attention_(std::move(attention)),
      scoring_(scoring),
      optimizer_(std::move(optimizer)) {}

Result<Trainer> Trainer::create(const ModelConfig& config, const ParameterSet& parameters,
                                PackedAttention attention, const ScoringConfig& scoring,
                                const AdamWConfig& optimizer_config) {
  CHORALE_ASSIGN_OR_RETURN(Model model, Model::create(config, parameters, scoring.threads));
  CHORALE_ASSIGN_OR_RETURN(AdamW optimizer, AdamW::create(optimizer_config, config));
  return Trainer(std::move(model), clone(parameters), std::move(attention), scoring, std::move(optimizer));
}

Status Trainer::accumulate(std::span<const TrainingSequence> sequences, std::size_t first_token,
                           const LossFunction& loss, double& total) {
  CHORALE_ASSIGN_OR_RETURN(const Pack pack, chorale::pack(sequences));
  if (pack.targets.empty()) return Status::ok();
  std::shared_ptr<Activations> activations;
  CHORALE_ASSIGN_OR_RETURN(const Tensor logits, forward(model_, attention_, pack, &activations));
  const std::vector<float> log_probs = log_probs_of(logits, pack, scoring_);

  std::vector<float> gradients(log_probs.size());
  for (std::size_t i = 0; i < log_probs.size(); ++i) {
    const TokenLoss token = loss(first_token + i, log_probs[i]);
    total += token.loss;
    gradients[i] = token.gradient;
  }

  const std::int64_t vocab = logits.shape(1);
  const Tensor grad_logits = Tensor::zeros(DType::float32, {logits.shape(0), vocab});
  parallel_for(logits.shape(0), scoring_.threads, [&](std::int64_t i, int) {
    token_log_prob_backward(logits.as<float>().data() + i * vocab, vocab, scoring_.temperature,
                            pack.targets[i], gradients[i], grad_logits.as<float>().data() + i * vocab);
  });
  return model_.backward(*activations, grad_logits, attention_, gradients_);
}

Result<StepResult> Trainer::step(std::span<const TrainingSequence> sequences, const LossFunction& loss) {
  for (NamedTensor& gradient : gradients_) std::ranges::fill(gradient.value.as<float>(), 0.0f);
  StepResult result;
  std::size_t first_token = 0;
  for (const auto& [first, last] : split_by_tokens(sequences, scoring_.tokens_per_pack)) {
    const auto run = sequences.subspan(first, last - first);
    CHORALE_RETURN_IF_ERROR(accumulate(run, first_token, loss, result.loss));
    first_token += count_answer_tokens(run);
  }
  CHORALE_ASSIGN_OR_RETURN(result.gradient_norm, optimizer_.step(parameters_, gradients_, scoring_.threads));
  CHORALE_RETURN_IF_ERROR(model_.set_parameters(parameters_));
  return result;
}

Status Trainer::set_optimizer(const AdamWConfig& config) {
  CHORALE_ASSIGN_OR_RETURN(optimizer_, AdamW::create(config, model_.config()));
  return Status::ok();
}

}  // namespace chorale
