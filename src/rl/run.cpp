#include "rl/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "base/files.h"
#include "mask/picture.h"
#include "model/hugging_face.h"
#include "rl/grpo.h"
#include "rl/packed_roles.h"
#include "rl/random.h"

namespace chorale {
namespace {

// Seconds since it was made or last asked.
class Stopwatch {
 public:
  double lap() {
    const auto now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

// The mask of this run's longest sequence, pair by pair, and the mask as it tiles a long one.
Result<std::vector<Report::Picture>> draw_masks(const Problem& problem, std::int64_t longest) {
  const auto draw = [&](std::int64_t length, std::int64_t tile) -> Result<Report::Picture> {
    CHORALE_ASSIGN_OR_RETURN(MaskPicture picture, draw_mask(problem.mask, length, length, tile));
    return Report::Picture{
        fmt::format("{}: {} positions, tiles of {}", problem.mask.to_string(), length, tile),
        std::move(picture.svg), std::move(picture.summary)};
  };
  std::vector<Report::Picture> pictures;
  CHORALE_ASSIGN_OR_RETURN(pictures.emplace_back(), draw(longest, 1));
  CHORALE_ASSIGN_OR_RETURN(pictures.emplace_back(), draw(1024, 64));
  return pictures;
}

// The model of this project takes neither.
Status check_problem(const Config& config, const Problem& problem) {
  if (problem.sinks) return config["model"]["sinks"].error("is true: a Qwen3 model has no attention sinks");
  if (problem.value_dim() != problem.head_dim)
    return config["model"]["value_head_dim"].error(fmt::format(
        "is {}: a Qwen3 model's values have its head_dim {}", problem.value_dim(), problem.head_dim));
  if (config["model"]["path"].exists())
    return config["model"]["path"].error(
        "is given: a training run starts from random weights, so give the shape alone");
  return {};
}

}  // namespace

Result<std::unique_ptr<Run>> Run::prepare(const RunOptions& options) {
  CHORALE_ASSIGN_OR_RETURN(const Config file, Config::load(options.config_file, options.overrides));
  CHORALE_ASSIGN_OR_RETURN(const RunConfig config, RunConfig::read(file));
  CHORALE_ASSIGN_OR_RETURN(const Roles roles, Roles::from(file));
  CHORALE_ASSIGN_OR_RETURN(const Problem problem, roles.problem());
  CHORALE_RETURN_IF_ERROR(check_problem(file, problem));
  CHORALE_RETURN_IF_ERROR(file.reject_unknown());
  CHORALE_ASSIGN_OR_RETURN(SumOfDigits task, SumOfDigits::create(config.task, config.seed));

  CHORALE_ASSIGN_OR_RETURN(ResolvedRoles resolved,
                           roles.resolve_all(problem, Device::cpu(config.threads), roles.layers()));
  if (const Status agreed = resolved.check(); !agreed.is_ok()) {
    options.print(resolved.explain());  // which role disagrees, and why
    return agreed;
  }

  CHORALE_ASSIGN_OR_RETURN(RunFolder folder,
                           RunFolder::open(options.output.empty() ? "runs/" + config.name : options.output));
  const auto checkpoint = folder.checkpoint();
  if (options.resume && !checkpoint)
    return Status::not_found(fmt::format("nothing to resume: {} holds no checkpoint", folder.path()));
  if (!options.resume && checkpoint)
    return Status::invalid_argument(
        fmt::format("{} is left from an interrupted run: continue it with --resume, choose another folder "
                    "with --out, or remove it",
                    *checkpoint));
  options.print(resolved.explain());

  std::unique_ptr<Run> run(
      new Run(options, config, problem, std::move(resolved), std::move(task), std::move(folder)));
  CHORALE_RETURN_IF_ERROR(run->build());
  if (checkpoint) CHORALE_RETURN_IF_ERROR(run->restore_checkpoint(*checkpoint));
  return run;
}

ScoringConfig Run::scoring(float temperature) const {
  return {.temperature = temperature,
          .tokens_per_pack = config_.trainer.tokens_per_pack,
          .threads = config_.threads};
}

AdamWConfig Run::warmup_optimizer() const {
  AdamWConfig optimizer = config_.optimizer;
  optimizer.learning_rate = config_.warmup.learning_rate;
  return optimizer;
}

Status Run::build() {
  const int layers = config_.model.num_hidden_layers;
  CHORALE_ASSIGN_OR_RETURN(PackedAttention actor,
                           build_packed_attention(resolved_, Role::actor, layers, config_.kv_scales()));
  CHORALE_ASSIGN_OR_RETURN(reference_attention_,
                           build_packed_attention(resolved_, Role::ref, layers, config_.kv_scales()));
  CHORALE_ASSIGN_OR_RETURN(LayerAttentions rollout, LayerAttentions::build(resolved_, layers));
  CHORALE_ASSIGN_OR_RETURN(
      trainer_, Trainer::create(config_.model, random_parameters(config_.model, config_.seed),
                                std::move(actor), scoring(config_.rollout.temperature), warmup_optimizer()));
  CHORALE_ASSIGN_OR_RETURN(generator_,
                           Generator::create(trainer_->model(), std::move(rollout), config_.generator()));
  return {};
}

Result<RunEnd> Run::train() {
  const auto stopped = [&]() -> Result<bool> {
    if (!options_.stop_requested()) return false;
    CHORALE_RETURN_IF_ERROR(save_checkpoint());
    return true;
  };
  while (std::ssize(history_.warmup_losses) < config_.warmup.steps) {
    CHORALE_RETURN_IF_ERROR(warmup_step());
    CHORALE_ASSIGN_OR_RETURN(const bool stop, stopped());
    if (stop) return RunEnd::interrupted;
  }
  if (!reference_) CHORALE_RETURN_IF_ERROR(start_grpo());
  while (std::ssize(history_.steps) < config_.grpo.steps) {
    CHORALE_RETURN_IF_ERROR(grpo_step());
    const std::int64_t step = std::ssize(history_.steps);
    const auto due = [&](int every) { return every > 0 && step % every == 0 && step < config_.grpo.steps; };
    if (due(config_.trainer.evaluate_every)) CHORALE_RETURN_IF_ERROR(evaluate());
    if (due(config_.trainer.save_every)) CHORALE_RETURN_IF_ERROR(save_checkpoint());
    CHORALE_ASSIGN_OR_RETURN(const bool stop, stopped());
    if (stop) return RunEnd::interrupted;
  }
  CHORALE_RETURN_IF_ERROR(finish());
  return RunEnd::done;
}

Status Run::warmup_step() {
  Stopwatch stopwatch;
  const auto& prompts = task_.training_prompts();
  const std::uint64_t step = history_.warmup_losses.size();
  std::vector<TrainingSequence> sequences;
  for (int i = 0; i < config_.warmup.prompts; ++i) {
    const auto& prompt =
        prompts[random_below(random_bits(config_.seed, Stream::warmup_prompts, step, i), prompts.size())];
    TrainingSequence sequence{.tokens = prompt, .prompt_length = static_cast<std::int32_t>(prompt.size())};
    for (const std::int32_t token : SumOfDigits::answer(prompt)) sequence.tokens.push_back(token);
    sequences.push_back(std::move(sequence));
  }
  const double weight = 1.0 / static_cast<double>(count_answer_tokens(sequences));
  const auto cross_entropy = [&](std::size_t, float log_prob) {
    return TokenLoss{.loss = -weight * log_prob, .gradient = static_cast<float>(-weight)};
  };
  CHORALE_ASSIGN_OR_RETURN(const StepResult result, trainer_->step(sequences, cross_entropy));
  history_.warmup_losses.push_back(result.loss);
  history_.warmup_seconds += stopwatch.lap();
  if ((step + 1) % 20 == 0 || static_cast<int>(step + 1) == config_.warmup.steps)
    options_.print(fmt::format("warm-up {:>4}/{}  loss {:.4f}  {:.1f} s", step + 1, config_.warmup.steps,
                               result.loss, history_.warmup_seconds));
  return {};
}

Status Run::start_grpo() {
  CHORALE_RETURN_IF_ERROR(freeze_reference(clone(trainer_->parameters())));
  CHORALE_RETURN_IF_ERROR(trainer_->set_optimizer(config_.optimizer));
  return evaluate();
}

Status Run::freeze_reference(ParameterSet parameters) {
  CHORALE_ASSIGN_OR_RETURN(reference_, Model::create(config_.model, parameters, config_.threads));
  reference_parameters_ = std::move(parameters);
  return {};
}

double Run::Answers::mean_reward() const {
  return std::accumulate(rewards.begin(), rewards.end(), 0.0) / static_cast<double>(rewards.size());
}

Result<Run::Answers> Run::generate(std::span<const SumOfDigits::Tokens> prompts, int group_size,
                                   const SamplingConfig& sampling, std::uint64_t step) {
  std::vector<Request> requests;
  for (const SumOfDigits::Tokens& prompt : prompts)
    for (int i = 0; i < group_size; ++i) {
      const std::uint64_t number = requests.size();
      SamplingConfig own = sampling;
      own.seed = random_bits(config_.seed, Stream::rollout_sampling, step, number);
      requests.push_back({.id = static_cast<RequestId>(number),
                          .prompt = prompt,
                          .max_new_tokens = config_.task.longest_answer(),
                          .sampling = own,
                          .stop_tokens = {SumOfDigits::end}});
    }
  CHORALE_ASSIGN_OR_RETURN(const std::vector<Completion> completions, generator_->generate(requests));

  Answers answers;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const Completion& completion = completions[i];
    TrainingSequence sequence{.tokens = requests[i].prompt,
                              .prompt_length = static_cast<std::int32_t>(requests[i].prompt.size())};
    sequence.tokens.insert(sequence.tokens.end(), completion.tokens.begin(), completion.tokens.end());
    answers.sequences.push_back(std::move(sequence));
    answers.log_probs.insert(answers.log_probs.end(), completion.log_probs.begin(),
                             completion.log_probs.end());
    answers.rewards.push_back(SumOfDigits::reward(requests[i].prompt, completion.tokens));
  }
  return answers;
}

Result<LogProbComparison> Run::compare(const Answers& answers, float temperature) {
  CHORALE_ASSIGN_OR_RETURN(const std::vector<float> recomputed,
                           trainer_->log_probs(answers.sequences, temperature));
  LogProbComparison comparison;
  CHORALE_RETURN_IF_ERROR(comparison.add(answers.log_probs, recomputed));
  history_.comparison.add(comparison);
  return comparison;
}

Status Run::grpo_step() {
  const std::uint64_t step = history_.steps.size() + 1;
  StepRecord record{.step = static_cast<std::int64_t>(step)};
  Stopwatch stopwatch;

  const auto& all_prompts = task_.training_prompts();
  std::vector<SumOfDigits::Tokens> prompts;
  for (int i = 0; i < config_.grpo.prompts; ++i)
    prompts.push_back(all_prompts[random_below(random_bits(config_.seed, Stream::rollout_prompts, step, i),
                                               all_prompts.size())]);
  CHORALE_ASSIGN_OR_RETURN(
      const Answers answers,
      generate(prompts, config_.grpo.group_size, {.temperature = config_.rollout.temperature}, step));
  record.reward = answers.mean_reward();
  record.generate_seconds = stopwatch.lap();

  CHORALE_ASSIGN_OR_RETURN(const LogProbComparison comparison, compare(answers, config_.rollout.temperature));
  record.tokens = comparison.tokens, record.different = comparison.different,
  record.max_delta = comparison.max_delta;
  record.score_seconds = stopwatch.lap();

  CHORALE_ASSIGN_OR_RETURN(const std::vector<float> reference,
                           answer_log_probs(*reference_, *reference_attention_, answers.sequences,
                                            scoring(config_.rollout.temperature)));
  for (std::size_t i = 0; i < reference.size(); ++i)
    record.kl += kl_estimate(answers.log_probs[i], reference[i]);
  record.kl /= static_cast<double>(reference.size());
  record.reference_seconds = stopwatch.lap();

  CHORALE_RETURN_IF_ERROR(learn(answers, reference, record));
  record.learn_seconds = stopwatch.lap();
  history_.steps.push_back(record);
  options_.print(fmt::format(
      "step {:>4}/{}  reward {:.3f}  kl {:.4f}  {:>6.0f} tokens/s  log-prob difference {:.3e} ({} of {} "
      "tokens)",
      step, config_.grpo.steps, record.reward, record.kl,
      static_cast<double>(record.tokens) / record.seconds(), record.max_delta, record.different,
      record.tokens));
  return {};
}

// Every epoch goes through the step's answers once, a whole number of groups at a time.
Status Run::learn(const Answers& answers, const std::vector<float>& reference, StepRecord& record) {
  const auto group = static_cast<std::size_t>(config_.grpo.group_size);
  const std::size_t groups = answers.sequences.size() / group,
                    minibatches = static_cast<std::size_t>(config_.grpo.minibatches);
  const std::vector<double> advantages =
      group_advantages(answers.rewards, config_.grpo.group_size, config_.loss.advantage_epsilon);

  std::vector<GrpoToken> tokens;
  for (std::size_t i = 0; i < answers.sequences.size(); ++i)
    for (std::int32_t j = 0; j < answers.sequences[i].answer_length(); ++j)
      tokens.push_back({.advantage = advantages[i],
                        .behaviour_log_prob = answers.log_probs[tokens.size()],
                        .reference_log_prob = reference[tokens.size()]});

  for (int epoch = 0; epoch < config_.grpo.epochs; ++epoch) {
    std::size_t first_token = 0;
    for (std::size_t i = 0; i < minibatches; ++i) {
      const std::size_t first = groups * i / minibatches * group,
                        last = groups * (i + 1) / minibatches * group;
      const auto part = std::span(answers.sequences).subspan(first, last - first);
      const std::size_t count = count_answer_tokens(part);
      const double weight = 1.0 / static_cast<double>(count);
      const auto loss = [&](std::size_t token, float log_prob) {
        return grpo_loss(config_.loss, tokens[first_token + token], log_prob, weight);
      };
      CHORALE_ASSIGN_OR_RETURN(const StepResult result, trainer_->step(part, loss));
      record.loss = result.loss, record.gradient_norm = result.gradient_norm;
      first_token += count;
    }
  }
  return {};
}

// Greedy answers to held-out prompts, evenly spread over all of them. Their tokens are compared, too.
Status Run::evaluate() {
  const auto& held_out = task_.held_out_prompts();
  const std::size_t count = std::min<std::size_t>(held_out.size(), config_.trainer.evaluation_prompts);
  std::vector<SumOfDigits::Tokens> prompts;
  for (std::size_t i = 0; i < count; ++i) prompts.push_back(held_out[i * held_out.size() / count]);
  const SamplingConfig greedy{.temperature = 0};
  CHORALE_ASSIGN_OR_RETURN(const Answers answers, generate(prompts, 1, greedy, 0));
  CHORALE_RETURN_IF_ERROR(compare(answers, greedy.recorded_temperature()).status());

  const std::int64_t step = std::ssize(history_.steps);
  if (!history_.evaluations.empty() && history_.evaluations.back().step == step)
    history_.evaluations.pop_back();
  history_.evaluations.push_back(
      {.step = step, .reward = answers.mean_reward(), .prompts = static_cast<std::int64_t>(count)});
  options_.print(fmt::format("evaluation after step {}: mean reward {:.4f} on {} held-out prompts", step,
                             answers.mean_reward(), count));

  constexpr std::size_t most_samples = 16;
  const std::size_t shown = std::min(most_samples, count);
  const Tokenizer tokenizer = SumOfDigits::tokenizer();
  samples_.clear();
  for (std::size_t i = 0; i < shown; ++i) {
    const std::size_t number = i * count / shown;
    const TrainingSequence& sequence = answers.sequences[number];
    samples_.push_back(
        {tokenizer.decode(prompts[number]), tokenizer.decode(sequence.answer()), answers.rewards[number]});
  }
  return {};
}

Status Run::finish() {
  CHORALE_RETURN_IF_ERROR(evaluate());
  options_.print(fmt::format("\n{}", history_.comparison.report()));
  CHORALE_RETURN_IF_ERROR(save_model_folder(folder_.model(), config_.model, trainer_->parameters()));
  CHORALE_RETURN_IF_ERROR(SumOfDigits::tokenizer().save(folder_.model()));
  CHORALE_RETURN_IF_ERROR(write_file(folder_.history(), to_json(history_)));

  CHORALE_ASSIGN_OR_RETURN(auto masks, draw_masks(problem_, config_.model.max_position_embeddings));
  const Report report{.config = config_,
                      .roles = resolved_,
                      .history = history_,
                      .device = Device::cpu(config_.threads).describe(),
                      .command = options_.command,
                      .masks = std::move(masks),
                      .samples = samples_};
  CHORALE_RETURN_IF_ERROR(write_file(folder_.report(), report.to_html()));
  CHORALE_RETURN_IF_ERROR(folder_.prune_checkpoints(0));
  options_.print(fmt::format("model  {}\nreport {}", folder_.model(), folder_.report()));
  return {};
}

}  // namespace chorale
