// How fast a Qwen3-0.6B-shaped model with random weights runs on this CPU: tokens per second of decode and of
// a training step, the share of attention, and how far from the limits that are measured in the same run.
#include <fmt/core.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/float.h"
#include "base/threads.h"
#include "bench/peaks.h"
#include "chorale/chorale.h"
#include "model/model.h"
#include "model_operations.h"
#include "rollout/cached_attention.h"
#include "rollout/sampler.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"
#include "trainer/trainer.h"

namespace chorale::bench {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Processor time of this process. On a machine that others use too it tells how much of a second of the clock
// was ours.
double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}
struct Span {
  Clock::time_point start = Clock::now();
  double cpu_start = cpu_seconds();
  double seconds() const { return seconds_since(start); }
  // How much of `threads` cores this process had.
  double share(int threads) const { return (cpu_seconds() - cpu_start) / (seconds() * threads); }
};

struct Options {
  int layers = 28, threads = 0, steps = 2;
  std::int64_t tokens = 4096, sequence = 1024, context = 1024;
  std::vector<int> batches{1, 32};
  double seconds = 5;  // of each decode
  bool train = true, operations = false;
};

int threads_of(const Options& options) { return options.threads > 0 ? options.threads : default_threads(); }

ModelConfig qwen3_600m(const Options& options) {
  ModelConfig config;
  config.vocab_size = 151936;
  config.hidden_size = 1024;
  config.intermediate_size = 3072;
  config.num_hidden_layers = options.layers;
  config.num_attention_heads = 16;
  config.num_key_value_heads = 8;
  config.head_dim = 128;
  config.rope_theta = 1e6f;
  config.tie_word_embeddings = true;
  config.max_position_embeddings = 40960;
  config.compute_dtype = DType::bfloat16;
  return config;
}

// Weights that every token multiplies with: the layers' matrices and the head.
double matrix_elements(const ModelConfig& config) {
  const double hidden = config.hidden_size, heads = config.num_attention_heads + config.num_key_value_heads;
  const double layer = hidden * config.head_dim * heads * 2 + 3 * hidden * config.intermediate_size;
  return config.num_hidden_layers * layer + hidden * config.vocab_size;
}

// Noise of deviation 0.02, and ones for norms. Model's own random_parameters draws each number from one
// stream, which takes longer than all that is measured.
ParameterSet noise_parameters(const ModelConfig& config, int threads) {
  ParameterSet parameters = zero_parameters(config);
  parallel_for(std::ssize(parameters), threads, [&](std::int64_t i, int) {
    const Tensor& tensor = parameters[static_cast<std::size_t>(i)].value;
    const bool is_norm = tensor.view().rank == 1;
    auto state = static_cast<std::uint32_t>(i);
    for (float& value : tensor.as<float>()) {
      state = state * 1664525u + 1013904223u;
      value = is_norm ? 1.0f : 0.0346f * (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    }
  });
  return parameters;
}

// Another implementation, with a clock.
class Timed final : public Implementation {
 public:
  explicit Timed(const Implementation& inner) : inner_(inner) {}
  std::string_view name() const override { return inner_.name(); }
  Status supports(const Problem& problem, const Device& device, Phase phase) const override {
    return inner_.supports(problem, device, phase);
  }
  Fingerprint fingerprint(const Problem& problem, const Device& device) const override {
    return inner_.fingerprint(problem, device);
  }
  Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                           const Device& device) const override {
    return inner_.plan(problem, batch, device);
  }
  Status forward(const Plan& plan, const ForwardTensors& tensors) const override {
    return time([&] { return inner_.forward(plan, tensors); });
  }
  Status backward(const Plan& plan, const BackwardTensors& tensors) const override {
    return time([&] { return inner_.backward(plan, tensors); });
  }
  double take_seconds() { return std::exchange(seconds_, 0.0); }

 private:
  template <class Call>
  Status time(const Call& call) const {
    const auto start = Clock::now();
    Status status = call();
    seconds_ += seconds_since(start);
    return status;
  }
  const Implementation& inner_;
  mutable double seconds_ = 0;  // the model calls attention from one thread
};

struct Limits {
  double flops, bandwidth;
};

Status measure_decode(const Model& model, Timed& timed, int batch, const Options& options,
                      const Limits& limits) {
  const ModelConfig& config = model.config();
  constexpr int page_size = 16;
  const std::int64_t room = options.context + 256;
  CHORALE_ASSIGN_OR_RETURN(KvCache cache, KvCache::create({.layers = config.num_hidden_layers,
                                                           .kv_heads = config.num_key_value_heads,
                                                           .head_dim = config.head_dim,
                                                           .dtype = config.compute_dtype,
                                                           .page_size = page_size,
                                                           .pages = batch * (room / page_size + 1)}));
  // The context's keys are noise: what they hold changes no time, and to compute them would take minutes.
  const Tensor noise =
      Tensor::zeros(config.compute_dtype, {options.context, config.num_key_value_heads, config.head_dim});
  for (std::int64_t i = 0; i < noise.elements(); ++i)
    store_element(noise.view().data, noise.dtype(), i, std::sin(static_cast<float>(i)));
  StepSegments step;
  for (int i = 0; i < batch; ++i) {
    const auto sequence = cache.add();
    CHORALE_ASSIGN_OR_RETURN(const auto slots, cache.append(sequence, options.context));
    for (int layer = 0; layer < config.num_hidden_layers; ++layer)
      CHORALE_RETURN_IF_ERROR(cache.store(layer, slots, noise, noise));
    step.decode.push_back({sequence, static_cast<std::int32_t>(options.context), 1});
  }
  const Attention attention(config.problem(), timed, Device::cpu(options.threads));
  CHORALE_ASSIGN_OR_RETURN(
      CachedAttention cached,
      CachedAttention::create(LayerAttentions::uniform(attention, config.num_hidden_layers),
                              std::move(cache)));

  std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch), 1), rows;
  for (int i = 0; i < batch; ++i) rows.push_back(i);
  double seconds = 0, in_attention = 0, sampling = 0;
  Span span;
  int steps = 0;
  constexpr int warm = 2;
  for (; steps < warm + 3 || (seconds < options.seconds && steps < 250); ++steps) {
    if (steps == warm) seconds = sampling = 0, timed.take_seconds(), span = Span();
    const auto start = Clock::now();
    std::vector<std::int32_t> positions;
    step.slots.clear();
    for (Segment& segment : step.decode) {
      segment.first = static_cast<std::int32_t>(options.context) + steps;
      positions.push_back(segment.first);
      CHORALE_ASSIGN_OR_RETURN(const auto slots, cached.cache().append(segment.sequence, 1));
      step.slots.push_back(slots[0]);
    }
    CHORALE_RETURN_IF_ERROR(cached.plan(step));
    CHORALE_ASSIGN_OR_RETURN(const Tensor logits, model.forward({tokens, positions, rows}, cached));
    const auto drawn = Clock::now();
    parallel_for(batch, options.threads, [&](std::int64_t i, int) {
      const auto row = logits.as<float>().subspan(static_cast<std::size_t>(i * config.vocab_size),
                                                  static_cast<std::size_t>(config.vocab_size));
      const Result<Sample> next =
          sample(row, {.temperature = 1, .seed = static_cast<std::uint64_t>(i)}, steps);
      tokens[static_cast<std::size_t>(i)] = next ? next->token : 0;
    });
    sampling += seconds_since(drawn);
    seconds += seconds_since(start);
  }
  in_attention = timed.take_seconds();
  const double share = span.share(threads_of(options));
  steps -= warm;
  const double bytes = matrix_elements(config) * 2 * steps;
  fmt::print(
      "decode, batch {:2}, context {}: {:8.2f} tokens/s, {:7.2f} ms a step ({} steps; {:.0f}% of the "
      "cores)\n",
      batch, options.context, batch * steps / seconds, 1e3 * seconds / steps, steps, 100 * share);
  fmt::print(
      "    attention {:.1f}%, sampling {:.1f}%; weights read at {:.1f} GB/s, {:.0f}% of the memory's "
      "bandwidth; products {:.0f} GFLOP/s\n",
      100 * in_attention / seconds, 100 * sampling / seconds, bytes / seconds / 1e9,
      100 * bytes / seconds / limits.bandwidth, 2 * matrix_elements(config) * batch * steps / seconds / 1e9);
  return Status::ok();
}

std::vector<TrainingSequence> random_sequences(const Options& options, int vocab) {
  std::vector<TrainingSequence> sequences;
  std::uint32_t state = 1;
  for (std::int64_t left = options.tokens; left > 0; left -= options.sequence) {
    TrainingSequence sequence{{}, 1};
    for (std::int64_t i = 0; i < std::min(left, options.sequence); ++i) {
      state = state * 1664525u + 1013904223u;
      sequence.tokens.push_back(static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(vocab)));
    }
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

// What a training step takes: master weights, gradients, two moments and both packed forms, the embedding,
// kept activations, the rows that layers work in, logits.
double training_bytes(const ModelConfig& config, const Options& options) {
  const auto tokens = static_cast<double>(options.tokens), hidden = static_cast<double>(config.hidden_size);
  const double heads = config.head_dim * (config.num_attention_heads + config.num_key_value_heads);
  const double columns = 2 * hidden + 2.0 * config.intermediate_size + 3 * heads;
  const double matrices = matrix_elements(config) * (4 * 4 + 2 * 2) + hidden * config.vocab_size * 2;
  const double working = 2 * 4 * tokens * (7 * hidden + 3.0 * config.intermediate_size + 3 * heads);
  return matrices + 2 * columns * tokens * config.num_hidden_layers + working +
         4 * std::min(tokens, 1024.0) * config.vocab_size;
}
double available_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:")) return std::stod(line.substr(line.find(':') + 1)) * 1024;
  return 0;
}

Status measure_training(const ModelConfig& config, ParameterSet parameters, Timed& timed,
                        const Options& options, const Limits& limits) {
  const double needed = training_bytes(config, options),
               available = available_bytes() + 4 * matrix_elements(config);
  if (needed > available) {
    fmt::print(
        "training step left out: {:.1f} GB needed, {:.1f} available; --layers and --tokens make it smaller\n",
        needed / 1e9, available / 1e9);
    return Status::ok();
  }
  const Attention attention(config.problem(), timed, Device::cpu(options.threads));
  const std::vector<PackedLayer> layers(static_cast<std::size_t>(config.num_hidden_layers),
                                        PackedLayer{attention, attention});
  CHORALE_ASSIGN_OR_RETURN(
      Trainer trainer,
      Trainer::create(config, parameters, PackedAttention(layers),
                      {.tokens_per_pack = options.tokens, .threads = options.threads}, AdamWConfig{}));
  parameters.clear();  // the trainer has its own
  const std::vector<TrainingSequence> sequences = random_sequences(options, config.vocab_size);
  const double logits = static_cast<double>(count_answer_tokens(sequences));
  const double head = static_cast<double>(config.hidden_size) * config.vocab_size;
  const double products =
      6 * ((matrix_elements(config) - head) * static_cast<double>(options.tokens) + head * logits);
  double pairs = 0;  // of a query and a key that it sees
  for (const TrainingSequence& sequence : sequences) {
    const auto length = static_cast<double>(sequence.tokens.size());
    pairs += length * (length + 1) / 2;
  }
  // Two products forward and five backward.
  const double attended =
      pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim * 2 * 7;
  const LossFunction loss = [&](std::size_t, float log_prob) {
    return TokenLoss{-log_prob / logits, static_cast<float>(-1 / logits)};
  };
  for (int i = 0; i < options.steps; ++i) {
    timed.take_seconds();
    const Span span;
    CHORALE_ASSIGN_OR_RETURN(const StepResult result, trainer.step(sequences, loss));
    const double seconds = span.seconds(), share = span.share(threads_of(options)),
                 in_attention = timed.take_seconds();
    fmt::print(
        "training step {}, {} tokens in sequences of {}, logits of {:.0f}: {:8.1f} tokens/s, {:.2f} s, "
        "loss {:.4f} ({:.0f}% of the cores)\n",
        i + 1, options.tokens, options.sequence, logits, static_cast<double>(options.tokens) / seconds,
        seconds, result.loss, 100 * share);
    fmt::print(
        "    attention {:.1f}%; {:.2f} TFLOP of products and {:.2f} of attention: {:.0f} GFLOP/s, {:.0f}% "
        "of the peak\n",
        100 * in_attention / seconds, products / 1e12, attended / 1e12, (products + attended) / seconds / 1e9,
        100 * (products + attended) / seconds / limits.flops);
    std::fflush(stdout);
  }
  return Status::ok();
}

std::string_view products_by() {
  switch (simd::dot_level()) {
    case simd::DotLevel::amx:
      return "amx";
    case simd::DotLevel::avx512_bf16:
      return "avx512_bf16";
    case simd::DotLevel::none:
      break;
  }
  return "float32 chains";
}

Status run(const Options& options) {
  const ModelConfig config = qwen3_600m(options);
  const int threads = threads_of(options);
  const Limits limits{peak_flops(true, threads), peak_bandwidth(threads)};
  fmt::print("{} layers, {:.0f} million elements in matrices, bfloat16; {} threads, {}, products by {}\n",
             config.num_hidden_layers, matrix_elements(config) / 1e6, threads, simd::level(), products_by());
  fmt::print("limits measured now: {:.0f} GFLOP/s, {:.1f} GB/s\n", limits.flops / 1e9,
             limits.bandwidth / 1e9);
  std::fflush(stdout);

  CHORALE_ASSIGN_OR_RETURN(
      const Attention chosen,
      Attention::create(config.problem(), "auto", Device::cpu(options.threads),
                        {Phase::forward, Phase::backward, Phase::prefill, Phase::decode}));
  Timed timed(chosen.implementation());
  ParameterSet parameters = noise_parameters(config, threads);
  if (!options.batches.empty()) {
    const auto start = Clock::now();
    CHORALE_ASSIGN_OR_RETURN(const Model model, Model::create(config, parameters, options.threads));
    fmt::print("model made in {:.1f} s\n", seconds_since(start));
    std::fflush(stdout);
    for (const int batch : options.batches) {
      CHORALE_RETURN_IF_ERROR(measure_decode(model, timed, batch, options, limits));
      std::fflush(stdout);
    }
  }
  if (options.operations) print_operations(config, options.tokens, threads, limits.flops);
  if (options.train)
    CHORALE_RETURN_IF_ERROR(measure_training(config, std::move(parameters), timed, options, limits));
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("most memory in use: {:.1f} GB\n", static_cast<double>(usage.ru_maxrss) * 1024 / 1e9);
  return Status::ok();
}

}  // namespace
}  // namespace chorale::bench

int main(int argc, char** argv) {
  chorale::bench::Options options;
  CLI::App app("Tokens per second of a Qwen3-0.6B-shaped model with random weights");
  app.add_option("--layers", options.layers)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--threads", options.threads, "0: all cores")->check(CLI::Range(0, 1024));
  app.add_option("--batch", options.batches, "Sequences of a decode step, as in 1,32; none: no decode")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->expected(0, 100);
  app.add_option("--context", options.context, "Keys of each sequence before the first step")
      ->check(CLI::Range(1, 30000))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Of each decode")->capture_default_str();
  app.add_option("--tokens", options.tokens, "Of a training step")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--sequence", options.sequence, "Tokens of each packed sequence")
      ->check(CLI::Range(2, 30000))
      ->capture_default_str();
  app.add_option("--steps", options.steps, "Training steps")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  app.add_flag("--operations", options.operations, "Time one layer's operations one by one, too");
  CLI11_PARSE(app, argc, argv);
  options.train = options.steps > 0;
  if (const chorale::Status status = chorale::bench::run(options); !status.is_ok()) {
    fmt::print(stderr, "model_cpu: {}\n", status.message());
    return 1;
  }
  return 0;
}
