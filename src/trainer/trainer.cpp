#include "trainer/trainer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/threads.h"
#include "model/log_prob.h"

namespace chorale {
namespace {

// What the head reads for a pack's answer tokens. With `activations`, keeps what backward needs.
Result<Tensor> forward(const Model& model, PackedAttention& attention, const Pack& pack,
                       std::shared_ptr<Activations>* activations) {
  CHORALE_RETURN_IF_ERROR(attention.plan(pack.cu_seqlens));
  return model.forward_hidden(
      {.tokens = pack.tokens, .positions = pack.positions, .logit_rows = pack.logit_rows}, attention,
      activations);
}

// Calls body(first, logits) for answer tokens [first, first + logits.shape(0)) of a pack, in order: all
// logits of a large vocabulary would not fit in memory.
template <class Body>
Status for_logits(const Model& model, const Tensor& hidden, const Body& body) {
  constexpr std::int64_t most = 1024;
  for (std::int64_t first = 0; first < hidden.shape(0); first += most) {
    const std::int64_t end = std::min(first + most, hidden.shape(0));
    CHORALE_ASSIGN_OR_RETURN(const Tensor logits, model.logits(hidden.view().slice(0, first, end)));
    CHORALE_RETURN_IF_ERROR(body(first, logits));
  }
  return Status::ok();
}

float* row_of(const Tensor& logits, std::int64_t row) {
  return logits.as<float>().data() + row * logits.shape(1);
}

struct TokenLogProbs {
  std::vector<float> values;
  std::vector<Normalizer> normalizers;
};
TokenLogProbs log_probs_of(const Tensor& logits, std::span<const std::int32_t> targets,
                           const ScoringConfig& config) {
  TokenLogProbs tokens{std::vector<float>(targets.size()), std::vector<Normalizer>(targets.size())};
  parallel_for(std::ssize(targets), config.threads, [&](std::int64_t i, int) {
    const auto index = static_cast<std::size_t>(i);
    tokens.normalizers[index] = normalizer(row_of(logits, i), logits.shape(1), config.temperature);
    tokens.values[index] =
        token_log_prob(tokens.normalizers[index], row_of(logits, i), config.temperature, targets[index]);
  });
  return tokens;
}

}  // namespace

Result<std::vector<float>> answer_log_probs(const Model& model, PackedAttention& attention,
                                            std::span<const TrainingSequence> sequences,
                                            const ScoringConfig& config) {
  std::vector<float> all;
  for (const auto& [first, last] : split_by_tokens(sequences, config.tokens_per_pack)) {
    CHORALE_ASSIGN_OR_RETURN(const Pack pack, chorale::pack(sequences.subspan(first, last - first)));
    if (pack.targets.empty()) continue;
    CHORALE_ASSIGN_OR_RETURN(const Tensor hidden, forward(model, attention, pack, nullptr));
    const std::span<const std::int32_t> targets = pack.targets;
    CHORALE_RETURN_IF_ERROR(for_logits(model, hidden, [&](std::int64_t token, const Tensor& logits) {
      const std::vector<float> part =
          log_probs_of(logits, targets.subspan(token, logits.shape(0)), config).values;
      all.insert(all.end(), part.begin(), part.end());
      return Status::ok();
    }));
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
  CHORALE_ASSIGN_OR_RETURN(const Tensor hidden, forward(model_, attention_, pack, &activations_));
  const Tensor grad_hidden = Tensor::zeros(DType::float32, {hidden.shape(0), hidden.shape(1)});
  const std::span<const std::int32_t> targets = pack.targets;

  CHORALE_RETURN_IF_ERROR(for_logits(model_, hidden, [&](std::int64_t first, const Tensor& logits) -> Status {
    const std::int64_t count = logits.shape(0), vocab = logits.shape(1);
    const TokenLogProbs log_probs = log_probs_of(logits, targets.subspan(first, count), scoring_);
    std::vector<float> gradients;
    for (std::int64_t i = 0; i < count; ++i) {
      const TokenLoss token = loss(first_token + static_cast<std::size_t>(first + i), log_probs.values[i]);
      total += token.loss;
      gradients.push_back(token.gradient);
    }
    // The gradients of the logits take their place.
    parallel_for(count, scoring_.threads, [&](std::int64_t i, int) {
      token_log_prob_backward(log_probs.normalizers[i], row_of(logits, i), vocab, scoring_.temperature,
                              targets[first + i], gradients[i], row_of(logits, i));
    });
    CHORALE_ASSIGN_OR_RETURN(
        const Tensor grad,
        model_.backward_logits(hidden.view().slice(0, first, first + count), logits, gradients_));
    std::copy_n(row_of(grad, 0), grad.elements(), row_of(grad_hidden, first));
    return Status::ok();
  }));
  return model_.backward_hidden(*activations_, grad_hidden, attention_, gradients_);
}

Result<StepResult> Trainer::step(std::span<const TrainingSequence> sequences, const LossFunction& loss) {
  parallel_for(std::ssize(gradients_), scoring_.threads, [&](std::int64_t i, int) {
    std::ranges::fill(gradients_[static_cast<std::size_t>(i)].value.as<float>(), 0.0f);
  });
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
