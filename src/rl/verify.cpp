#include "rl/verify.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "base/float.h"
#include "kv/page_size.h"
#include "model/log_prob.h"
#include "rl/packed_roles.h"
#include "rl/random.h"
#include "trainer/packing.h"

namespace chorale {
namespace {

using OperationKey = std::pair<int, std::string>;  // layer and operation

// An output's row i. Elements of a row are contiguous (Observer says so).
std::span<const std::byte> row_bytes(const TensorView& output, std::int64_t row) {
  const std::size_t elements =
      output.shape[0] == 0 ? 0 : static_cast<std::size_t>(output.elements() / output.shape[0]);
  const auto* data = static_cast<const std::byte*>(output.data) +
                     row * output.stride[0] * static_cast<std::int64_t>(size_of(output.dtype));
  return {data, elements * size_of(output.dtype)};
}
std::vector<float> row_values(const TensorView& output, std::int64_t row) {
  const std::span<const std::byte> bytes = row_bytes(output, row);
  std::vector<float> values(bytes.size() / size_of(output.dtype));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = load_element(bytes.data(), output.dtype, static_cast<std::int64_t>(i));
  return values;
}

// FNV-1a. Whole outputs of a long generation would not fit in memory; 64 bits of each row do, and two rows
// that differ agree in them once in 2^64.
std::uint64_t digest(std::span<const std::byte> bytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte byte : bytes) hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3u;
  return hash;
}

// Where the tokens of a comparison lie in the trainer's pack. Lengths are known before anything is generated:
// no request has a stop token.
class Layout {
 public:
  explicit Layout(std::span<const Request> requests) {
    for (const Request& request : requests)
      starts_.push_back(starts_.back() + std::ssize(request.prompt) + request.max_new_tokens);
  }
  std::int64_t rows() const { return starts_.back(); }
  std::int64_t row(const StepRow& token) const {
    return starts_[static_cast<std::size_t>(token.request)] + token.position;
  }
  TokenPlace place(std::int64_t row) const {
    const auto next = std::upper_bound(starts_.begin(), starts_.end(), row);
    return {next - starts_.begin() - 1, row - *(next - 1)};
  }

 private:
  std::vector<std::int64_t> starts_{0};
};

// Which tokens a generator's step computes: what its observers have in common.
class GeneratorObserver : public StepObserver {
 public:
  explicit GeneratorObserver(const Layout& layout) : layout_(layout) {}
  void begin_step(std::span<const StepRow> rows, std::span<const std::int32_t> logit_rows) override {
    rows_.assign(rows.begin(), rows.end());
    logit_rows_.assign(logit_rows.begin(), logit_rows.end());
  }

 protected:
  // The pack's row of an output's row i.
  std::int64_t pack_row(std::string_view operation, std::int64_t i) const {
    return layout_.row(rows_[static_cast<std::size_t>(
        operation == "logits" ? logit_rows_[static_cast<std::size_t>(i)] : i)]);
  }
  const Layout& layout_;

 private:
  std::vector<StepRow> rows_;
  std::vector<std::int32_t> logit_rows_;
};

// A digest of every output that the rollout computed.
class RolloutDigests final : public GeneratorObserver {
 public:
  using GeneratorObserver::GeneratorObserver;
  void record(int layer, std::string_view operation, const TensorView& output) override {
    auto& rows = digests_[{layer, std::string(operation)}];
    rows.resize(static_cast<std::size_t>(layout_.rows()));
    for (std::int64_t i = 0; i < output.shape[0]; ++i)
      rows[static_cast<std::size_t>(pack_row(operation, i))] = digest(row_bytes(output, i));
  }
  // Nothing for an output that the rollout did not compute: the last token's, or one that lay in shared
  // pages.
  std::optional<std::uint64_t> find(int layer, std::string_view operation, std::int64_t row) const {
    const auto found = digests_.find({layer, std::string(operation)});
    return found == digests_.end() ? std::nullopt : found->second[static_cast<std::size_t>(row)];
  }

 private:
  std::map<OperationKey, std::vector<std::optional<std::uint64_t>>> digests_;
};

// Compares each of the trainer's outputs with what the rollout noted. The trainer computes in order, so the
// first operation that is seen to differ is the first that differs.
class Comparer final : public Observer {
 public:
  Comparer(const Layout& layout, const RolloutDigests& rollout, std::span<const std::int32_t> logit_rows)
      : layout_(layout), rollout_(rollout), logit_rows_(logit_rows) {}

  void record(int layer, std::string_view operation, const TensorView& output) override {
    OperationDifference difference{.layer = layer, .operation = std::string(operation), .places = {}};
    std::vector<float> values;
    for (std::int64_t i = 0; i < output.shape[0]; ++i) {
      const std::int64_t row = operation == "logits" ? logit_rows_[static_cast<std::size_t>(i)] : i;
      const std::optional<std::uint64_t> noted = rollout_.find(layer, operation, row);
      if (!noted) continue;
      ++outputs_;
      positions_ += operation == "embed";
      if (*noted == digest(row_bytes(output, i))) continue;
      if (difference.places.empty()) values = row_values(output, i);
      difference.places.push_back(layout_.place(row));
    }
    if (first_ || difference.places.empty()) return;
    first_ = std::move(difference);
    values_ = std::move(values);
  }

  std::int64_t outputs() const { return outputs_; }
  std::int64_t positions() const { return positions_; }
  const std::optional<OperationDifference>& first() const { return first_; }
  const std::vector<float>& values() const { return values_; }  // of the first place

 private:
  const Layout& layout_;
  const RolloutDigests& rollout_;
  std::span<const std::int32_t> logit_rows_;
  std::int64_t outputs_ = 0, positions_ = 0;
  std::optional<OperationDifference> first_;
  std::vector<float> values_;
};

// One row of one operation, of a rollout that is run again.
class Capture final : public GeneratorObserver {
 public:
  Capture(const Layout& layout, const OperationDifference& wanted)
      : GeneratorObserver(layout),
        wanted_(wanted),
        row_(layout.row({wanted.places[0].sequence, static_cast<std::int32_t>(wanted.places[0].position)})) {}
  void record(int layer, std::string_view operation, const TensorView& output) override {
    if (layer != wanted_.layer || operation != wanted_.operation) return;
    for (std::int64_t i = 0; i < output.shape[0]; ++i)
      if (pack_row(operation, i) == row_) values_ = row_values(output, i);
  }
  const std::vector<float>& values() const { return values_; }

 private:
  const OperationDifference& wanted_;
  const std::int64_t row_;
  std::vector<float> values_;
};

// Random tokens; prompts of different lengths, as far as the model has positions.
Result<std::vector<Request>> make_requests(const ModelConfig& model, const VerifyConfig& config) {
  constexpr std::int64_t usual_new_tokens = 32, longest_prompt = 48;
  const std::int64_t positions = model.max_position_embeddings;
  if (config.requests < 1)
    return Status::invalid_argument(fmt::format("requests {}: must be at least 1", config.requests));
  if (positions < 2 || config.max_new_tokens < 0 || config.max_new_tokens >= positions)
    return Status::invalid_argument(fmt::format(
        "max_new_tokens {}: must be at most {}, to leave a prompt one of the model's {} positions",
        config.max_new_tokens, positions - 1, positions));
  const std::int64_t new_tokens =
      config.max_new_tokens > 0 ? config.max_new_tokens : std::min(usual_new_tokens, positions / 2);
  const std::int64_t longest = std::min(longest_prompt, positions - new_tokens);
  std::vector<Request> requests;
  for (int i = 0; i < config.requests; ++i) {
    std::uint64_t draws = 0;
    const auto draw = [&](std::int64_t bound) {
      return random_below(
          random_bits(config.seed, Stream::verification, static_cast<std::uint64_t>(i), draws++),
          static_cast<std::uint64_t>(bound));
    };
    Request request;
    request.id = i;
    request.prompt.resize(1 + draw(longest));
    for (std::int32_t& token : request.prompt) token = static_cast<std::int32_t>(draw(model.vocab_size));
    request.max_new_tokens = new_tokens;
    request.sampling.temperature = config.temperature;
    request.sampling.seed = config.seed + static_cast<std::uint64_t>(i);
    requests.push_back(std::move(request));
  }
  return requests;
}

// As many as the requests can use at once: each running sequence whole, and the page that it must leave free.
std::int64_t enough_pages(std::span<const Request> requests, const GeneratorConfig& generator) {
  std::int64_t longest = 0;
  for (const Request& request : requests)
    longest = std::max(longest, std::ssize(request.prompt) + request.max_new_tokens);
  return std::min(std::ssize(requests), generator.scheduler.max_running) *
         (longest / generator.page_size + 2);
}

Result<std::vector<Completion>> generate(const Model& model, const ResolvedRoles& roles,
                                         GeneratorConfig config, std::span<const Request> requests,
                                         StepObserver& observer) {
  CHORALE_RETURN_IF_ERROR(check_page_size(config.page_size));
  if (config.pages == 0) config.pages = enough_pages(requests, config);
  CHORALE_ASSIGN_OR_RETURN(LayerAttentions attentions,
                           LayerAttentions::build(roles, model.config().num_hidden_layers));
  CHORALE_ASSIGN_OR_RETURN(Generator generator, Generator::create(model, std::move(attentions), config));
  generator.set_observer(&observer);
  return generator.generate(requests);
}

Result<Pack> pack_completions(std::span<const Request> requests, std::span<const Completion> completions) {
  std::vector<TrainingSequence> sequences;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    TrainingSequence sequence{requests[i].prompt, static_cast<std::int32_t>(requests[i].prompt.size())};
    sequence.tokens.insert(sequence.tokens.end(), completions[i].tokens.begin(), completions[i].tokens.end());
    sequences.push_back(std::move(sequence));
  }
  return pack(sequences);
}

// Which element differs first, once the rollout's values are known, too.
Status find_element(std::span<const float> rollout, std::span<const float> trainer,
                    OperationDifference& difference) {
  for (std::size_t i = 0; i < std::min(rollout.size(), trainer.size()); ++i)
    if (std::memcmp(&rollout[i], &trainer[i], sizeof(float)) != 0) {
      difference.element = static_cast<std::int64_t>(i);
      difference.rollout = rollout[i], difference.trainer = trainer[i];
      return Status::ok();
    }
  return Status::internal(fmt::format("layer {} {}: differed, but not when the rollout was run again",
                                      difference.layer, difference.operation));
}

// "0: 3-40; 2: 5, 7-9": positions of each sequence, neighbours joined.
std::string describe_places(std::span<const TokenPlace> places) {
  constexpr std::size_t most_ranges = 16;
  std::string text;
  std::size_t ranges = 0;
  for (std::size_t i = 0; i < places.size(); ++ranges) {
    std::size_t last = i;
    while (last + 1 < places.size() &&
           places[last + 1] == TokenPlace{places[i].sequence, places[last].position + 1})
      ++last;
    if (ranges == most_ranges) return text + fmt::format(" and {} more", places.size() - i);
    const bool same_sequence = i > 0 && places[i - 1].sequence == places[i].sequence;
    text += same_sequence ? ", " : fmt::format("{}sequence {}: ", i == 0 ? "" : "; ", places[i].sequence);
    text += last == i ? fmt::format("{}", places[i].position)
                      : fmt::format("{}-{}", places[i].position, places[last].position);
    i = last + 1;
  }
  return text;
}

}  // namespace

Result<VerifyReport> verify(const Model& model, const ResolvedRoles& roles, const VerifyConfig& config) {
  CHORALE_ASSIGN_OR_RETURN(const std::vector<Request> requests, make_requests(model.config(), config));
  const Layout layout(requests);
  RolloutDigests digests(layout);
  CHORALE_ASSIGN_OR_RETURN(const std::vector<Completion> completions,
                           generate(model, roles, config.generator, requests, digests));

  CHORALE_ASSIGN_OR_RETURN(const Pack packed, pack_completions(requests, completions));
  CHORALE_ASSIGN_OR_RETURN(PackedAttention attention,
                           build_packed_attention(roles, Role::actor, model.config().num_hidden_layers,
                                                  config.generator.key_scales));
  CHORALE_RETURN_IF_ERROR(attention.plan(packed.cu_seqlens));
  std::unique_ptr<Float64Check> float64;
  if (config.float64) {
    CHORALE_ASSIGN_OR_RETURN(
        float64,
        Float64Check::create(attention, roles.roles.at(Role::actor).front().problem, packed.cu_seqlens));
  }
  Comparer comparer(layout, digests, packed.logit_rows);
  CHORALE_ASSIGN_OR_RETURN(
      const Tensor logits,
      model.forward({packed.tokens, packed.positions, packed.logit_rows},
                    float64 ? static_cast<LayerAttention&>(*float64) : attention, nullptr, &comparer));

  VerifyReport report{.log_probs = {},
                      .sequences = std::ssize(requests),
                      .positions = comparer.positions(),
                      .outputs = comparer.outputs(),
                      .first = comparer.first(),
                      .float64 = std::nullopt};
  if (float64) report.float64 = float64->comparison();
  const float temperature = requests.front().sampling.recorded_temperature();
  const std::int64_t vocab = model.config().vocab_size;
  std::size_t token = 0;
  for (const Completion& completion : completions)
    for (const float recorded : completion.log_probs) {
      const float* row = logits.as<float>().data() + static_cast<std::int64_t>(token) * vocab;
      report.log_probs.add(recorded, token_log_prob(row, vocab, temperature, packed.targets[token]));
      ++token;
    }
  if (report.first) {
    Capture capture(layout, *report.first);
    CHORALE_RETURN_IF_ERROR(generate(model, roles, config.generator, requests, capture).status());
    CHORALE_RETURN_IF_ERROR(find_element(capture.values(), comparer.values(), *report.first));
  }
  return report;
}

std::string VerifyReport::text() const {
  std::string text = log_probs.report();
  text += fmt::format("\nCompared {} outputs of operations at {} positions of {} sequences.\n", outputs,
                      positions, sequences);
  if (float64)
    text += fmt::format(
        "Compared {} rows of the trainer's attention with float64: {} outside their bounds, the worst at "
        "{:.2f} of "
        "its bound.\n{}",
        float64->rows, float64->outside, float64->worst,
        float64->passes() ? "" : fmt::format("  first: {}\n", float64->first_outside));
  if (!first) {
    text +=
        log_probs.identical()
            ? "Every operation has the same bits.\n"
            : "Every operation has the same bits: the difference lies in the sampler's log-probability.\n";
    return text;
  }
  text += fmt::format("First difference: layer {}, operation '{}'\n", first->layer, first->operation);
  text += fmt::format("  at {} positions: {}\n", first->places.size(), describe_places(first->places));
  text += fmt::format("  first element: sequence {}, position {}, element {}: rollout {}, trainer {}\n",
                      first->places[0].sequence, first->places[0].position, first->element, first->rollout,
                      first->trainer);
  return text;
}

std::string VerifyReport::to_json() const {
  nlohmann::ordered_json document{{"identical", identical()},
                                  {"log_probs",
                                   {{"identical", log_probs.identical()},
                                    {"tokens_checked", log_probs.tokens},
                                    {"tokens_different", log_probs.different},
                                    {"max_delta", log_probs.max_delta},
                                    {"avg_delta", log_probs.average_delta()},
                                    {"diff_mean", log_probs.mean_diff()},
                                    {"diff_max", log_probs.max_diff}}},
                                  {"sequences", sequences},
                                  {"positions", positions},
                                  {"outputs", outputs},
                                  {"first_difference", nullptr}};
  if (float64)
    document["float64"] = {{"rows", float64->rows},
                           {"outside", float64->outside},
                           {"worst", float64->worst},
                           {"first_outside", float64->first_outside}};
  if (first) {
    nlohmann::ordered_json places = nlohmann::ordered_json::array();
    for (const TokenPlace& place : first->places) places.push_back({place.sequence, place.position});
    document["first_difference"] = {{"layer", first->layer},     {"operation", first->operation},
                                    {"places", places},          {"element", first->element},
                                    {"rollout", first->rollout}, {"trainer", first->trainer}};
  }
  return document.dump(2);
}

}  // namespace chorale
