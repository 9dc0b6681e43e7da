#include "rollout/generator.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "base/threads.h"
#include "rollout/sampler.h"

namespace chorale {
namespace {

// One step's rows as the model takes them.
struct StepInputs {
  std::vector<std::int32_t> tokens, positions, logit_rows;
  std::vector<StepRow> rows;
  StepSegments segments;
  std::vector<Generation*> drawing;  // whose next token each row of the logits is for
};

// Adds the chunk's positions [first, end).
void add_rows(const Chunk& chunk, std::int32_t first, std::int32_t end, std::vector<Segment>& segments,
              StepInputs& inputs) {
  if (first >= end) return;
  Generation& generation = *chunk.generation;
  segments.push_back({*generation.sequence, first, end - first});
  for (std::int32_t position = first; position < end; ++position) {
    inputs.tokens.push_back(generation.tokens[static_cast<std::size_t>(position)]);
    inputs.positions.push_back(position);
    inputs.rows.push_back({generation.request.id, position});
    inputs.segments.slots.push_back(chunk.slots[static_cast<std::size_t>(position - chunk.first)]);
  }
  if (end == generation.known()) {
    inputs.logit_rows.push_back(static_cast<std::int32_t>(inputs.rows.size()) - 1);
    inputs.drawing.push_back(&generation);
  }
}

// The positions of prompts first, then those of generated tokens (see StepSegments).
StepInputs lay_out(std::span<const Chunk> chunks) {
  StepInputs inputs;
  const auto prompt_end = [](const Chunk& chunk) {
    return std::clamp(static_cast<std::int32_t>(chunk.generation->request.prompt.size()), chunk.first,
                      chunk.first + chunk.count);
  };
  for (const Chunk& chunk : chunks)
    add_rows(chunk, chunk.first, prompt_end(chunk), inputs.segments.prefill, inputs);
  for (const Chunk& chunk : chunks)
    add_rows(chunk, prompt_end(chunk), chunk.first + chunk.count, inputs.segments.decode, inputs);
  return inputs;
}

void append(Generation& generation, const Sample& sample) {
  generation.tokens.push_back(sample.token);
  generation.completion.tokens.push_back(sample.token);
  generation.completion.log_probs.push_back(sample.log_prob);
}

bool is_finished(Generation& generation) {
  const Request& request = generation.request;
  if (std::ranges::find(request.stop_tokens, generation.tokens.back()) != request.stop_tokens.end()) {
    generation.completion.reason = FinishReason::stop;
    return true;
  }
  return std::ssize(generation.completion.tokens) == request.max_new_tokens;
}

}  // namespace

Result<Generator> Generator::create(const Model& model, LayerAttentions attentions,
                                    const GeneratorConfig& config) {
  CHORALE_RETURN_IF_ERROR(config.scheduler.validate());
  const Problem problem = model.config().problem();
  const bool in_8_bits = !attentions.prefill.empty() && attentions.prefill[0].problem().has_kv_scales();
  CHORALE_ASSIGN_OR_RETURN(KvCache cache,
                           KvCache::create({.layers = model.config().num_hidden_layers,
                                            .kv_heads = problem.kv_heads,
                                            .head_dim = problem.head_dim,
                                            .value_head_dim = problem.value_head_dim,
                                            .dtype = in_8_bits ? DType::float8_e4m3 : problem.dtype,
                                            .page_size = config.page_size,
                                            .pages = config.pages,
                                            .key_scales = config.key_scales,
                                            .value_scales = config.value_scales}));
  CHORALE_ASSIGN_OR_RETURN(CachedAttention attention,
                           CachedAttention::create(std::move(attentions), std::move(cache)));
  return Generator(model, std::move(attention), config);
}

Status Generator::submit(const Request& request) {
  const ModelConfig& model = model_->config();
  CHORALE_RETURN_IF_ERROR(request.validate(model.vocab_size, model.max_position_embeddings));
  if (is_idle()) attention_.cache().forget_prefixes();  // of other weights, for all that is known here
  return scheduler_.submit(request, attention_.cache().config());
}

Result<std::vector<Completion>> Generator::step() {
  const auto start = std::chrono::steady_clock::now();
  auto finished = run_step();
  stats_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!finished)
    CHORALE_RETURN_IF_ERROR(clear());  // the cache may have room for tokens that were never computed
  return finished;
}

Result<std::vector<Completion>> Generator::run_step() {
  CHORALE_ASSIGN_OR_RETURN(const std::vector<Chunk> chunks, scheduler_.schedule(attention_.cache()));
  if (chunks.empty()) return std::vector<Completion>{};
  const StepInputs inputs = lay_out(chunks);
  CHORALE_RETURN_IF_ERROR(attention_.plan(inputs.segments));
  if (observer_ != nullptr) observer_->begin_step(inputs.rows, inputs.logit_rows);
  CHORALE_ASSIGN_OR_RETURN(const Tensor logits, model_->forward({.tokens = inputs.tokens,
                                                                 .positions = inputs.positions,
                                                                 .logit_rows = inputs.logit_rows},
                                                                attention_, nullptr, observer_));
  CHORALE_RETURN_IF_ERROR(scheduler_.publish(chunks, attention_.cache()));
  ++stats_.steps;
  stats_.computed_tokens += std::ssize(inputs.rows);
  return draw(logits, inputs.drawing);
}

// Each draw is a function of its own row, so rows may be drawn in any order; what follows is in order.
Result<std::vector<Completion>> Generator::draw(const TensorView& logits,
                                                std::span<Generation* const> drawing) {
  std::vector<Result<Sample>> samples(drawing.size(), Sample{});
  const std::int64_t vocab = model_->config().vocab_size;
  parallel_for(std::ssize(drawing), config_.threads, [&](std::int64_t i, int) {
    const Generation& generation = *drawing[static_cast<std::size_t>(i)];
    const std::span row(static_cast<const float*>(logits.data) + i * logits.stride[0],
                        static_cast<std::size_t>(vocab));
    samples[static_cast<std::size_t>(i)] =
        sample(row, generation.request.sampling, std::ssize(generation.completion.tokens));
  });
  std::vector<Completion> finished;
  for (std::size_t i = 0; i < drawing.size(); ++i) {
    Generation& generation = *drawing[i];
    if (!samples[i])
      return samples[i].status().with_context(
          fmt::format("request {}, position {}", generation.request.id, generation.known()));
    append(generation, *samples[i]);
    ++stats_.generated_tokens;
    if (!is_finished(generation)) continue;
    CHORALE_ASSIGN_OR_RETURN(finished.emplace_back(), scheduler_.finish(generation, attention_.cache()));
  }
  return finished;
}

Result<std::vector<Completion>> Generator::generate(std::span<const Request> requests,
                                                    const std::atomic<bool>* stop) {
  if (!is_idle())
    return Status::invalid_argument("generate: the generator has unfinished requests; it must be idle");
  std::unordered_map<RequestId, std::size_t> places;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (Status submitted = submit(requests[i]); !submitted.is_ok()) {
      CHORALE_RETURN_IF_ERROR(clear());
      return submitted;
    }
    places[requests[i].id] = i;
  }
  std::vector<Completion> completions(requests.size());
  while (!is_idle()) {
    if (stop != nullptr && stop->load()) {
      CHORALE_RETURN_IF_ERROR(clear());
      return Status::interrupted(
          fmt::format("generation was interrupted; {} requests were dropped", requests.size()));
    }
    CHORALE_ASSIGN_OR_RETURN(std::vector<Completion> finished, step());
    for (Completion& completion : finished) completions[places.at(completion.id)] = std::move(completion);
  }
  return completions;
}

GeneratorStats Generator::stats() const {
  GeneratorStats stats = stats_;
  stats.preemptions = scheduler_.stats().preemptions;
  stats.forks = scheduler_.stats().forks;
  stats.shared_tokens = scheduler_.stats().shared_tokens;
  return stats;
}

}  // namespace chorale
