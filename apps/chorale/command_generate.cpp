// chorale generate FOLDER (--prompt TEXT | --prompt-tokens 1,2,3): samples from a model folder.
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "chorale/roles.h"
#include "commands.h"
#include "kv/page_size.h"
#include "model/hugging_face.h"
#include "rl/run_config.h"
#include "rl/tokenizer.h"
#include "roles/config.h"
#include "rollout/generator.h"

namespace chorale::app {
namespace {

struct GenerateArguments {
  std::string folder, config, prompt;
  std::vector<std::int32_t> prompt_tokens;
  std::optional<std::int64_t> max_new_tokens;  // none: 32, or what the model's positions leave
  std::int64_t samples = 1;
  SamplingConfig sampling;
  std::optional<int> page_size;       // none: what the configuration says, else 16
  std::optional<std::int64_t> pages;  // none: what the configuration says, else as many as are of use
  bool json = false;
};

// What one run of the command has at hand.
struct Session {
  ModelConfig config;
  std::optional<Tokenizer> tokenizer;
  std::vector<std::int32_t> prompt;
  std::vector<Request> requests;  // one a sample
};

Result<std::optional<Tokenizer>> load_tokenizer(const std::string& folder) {
  Result<Tokenizer> tokenizer = Tokenizer::load(folder);
  if (tokenizer) return std::optional(std::move(*tokenizer));
  if (tokenizer.status().code() == Code::not_found) return std::optional<Tokenizer>();
  return tokenizer.status();
}

Result<std::vector<std::int32_t>> read_prompt(const GenerateArguments& arguments,
                                              const std::optional<Tokenizer>& tokenizer) {
  if (arguments.prompt.empty()) return arguments.prompt_tokens;
  if (!tokenizer)
    return Status::unsupported(
        fmt::format("--prompt needs a chorale_tokenizer.json in {}, which has none: give --prompt-tokens",
                    arguments.folder));
  Result<std::vector<std::int32_t>> tokens = tokenizer->encode(arguments.prompt);
  if (!tokens) return tokens.status().with_context("--prompt");
  return tokens;
}

std::int64_t max_new_tokens(const GenerateArguments& arguments, const ModelConfig& config,
                            const std::vector<std::int32_t>& prompt) {
  constexpr std::int64_t usual = 32;
  const std::int64_t room = config.max_position_embeddings - std::ssize(prompt);
  return arguments.max_new_tokens.value_or(std::clamp<std::int64_t>(room, 1, usual));
}

// Each sample is a request of its own, with its own seed: what it draws does not depend on how many there
// are.
Result<std::vector<Request>> make_requests(const GenerateArguments& arguments, const ModelConfig& config,
                                           const std::vector<std::int32_t>& prompt) {
  if (arguments.samples < 1)
    return Status::invalid_argument(fmt::format("--n {}: must be at least 1", arguments.samples));
  Request request{.id = 0,
                  .prompt = prompt,
                  .max_new_tokens = max_new_tokens(arguments, config, prompt),
                  .sampling = arguments.sampling,
                  .stop_tokens = {}};
  if (config.eos_token_id >= 0) request.stop_tokens = {static_cast<std::int32_t>(config.eos_token_id)};
  CHORALE_RETURN_IF_ERROR(request.validate(config.vocab_size, config.max_position_embeddings));
  std::vector<Request> requests;
  for (std::int64_t i = 0; i < arguments.samples; ++i) {
    requests.push_back(request);
    requests.back().id = i;
    requests.back().sampling.seed += static_cast<std::uint64_t>(i);
  }
  return requests;
}

Result<Config> load_config(const GenerateArguments& arguments) {
  if (arguments.config.empty()) return Config::parse("rollout: {attn_implementation: auto}", "<defaults>");
  return Config::load(arguments.config);
}

Result<ResolvedRoles> resolve(const Roles& roles, const ModelConfig& config) {
  Problem problem = config.problem();
  problem.kv_dtype = roles.kv_cache_dtype();
  CHORALE_ASSIGN_OR_RETURN(ResolvedRoles resolved,
                           roles.resolve_all(problem, Device::cpu(), config.num_hidden_layers));
  for (const std::string& warning : resolved.warnings) fmt::print(stderr, "chorale: warning: {}\n", warning);
  CHORALE_RETURN_IF_ERROR(resolved.check());
  return resolved;
}

Result<GeneratorConfig> generator_config(const GenerateArguments& arguments, const RunConfig& run,
                                         const Session& session) {
  GeneratorConfig config = run.generator();
  config.page_size = arguments.page_size.value_or(config.page_size);
  config.pages = arguments.pages.value_or(config.pages);
  CHORALE_RETURN_IF_ERROR(check_page_size(config.page_size));
  if (config.pages ==
      0) {  // as many as can be of use: each running sequence whole, and the page it must leave free
    const std::int64_t tokens =
        std::ssize(session.prompt) + max_new_tokens(arguments, session.config, session.prompt);
    config.pages =
        std::min(arguments.samples, config.scheduler.max_running) * (tokens / config.page_size + 2);
  }
  return config;
}

void print_text(const Session& session, const std::vector<Completion>& completions,
                const GeneratorStats& stats) {
  for (const Completion& completion : completions) {
    const float log_prob = std::accumulate(completion.log_probs.begin(), completion.log_probs.end(), 0.f);
    fmt::print("sample {}: {} tokens, log-probability {:.4f}, ended by {}\n", completion.id,
               completion.tokens.size(), log_prob, name(completion.reason));
    fmt::print("  tokens {}\n", fmt::join(completion.tokens, ","));
    if (session.tokenizer) fmt::print("  text   {}\n", session.tokenizer->decode(completion.tokens));
  }
  fmt::print("{} tokens in {} steps, {:.1f} tokens/s\n", stats.generated_tokens, stats.steps,
             stats.tokens_per_second());
}

void print_json(const Session& session, const std::vector<Completion>& completions,
                const GeneratorStats& stats) {
  nlohmann::ordered_json samples = nlohmann::ordered_json::array();
  for (const Completion& completion : completions) {
    samples.push_back({{"tokens", completion.tokens},
                       {"log_probs", completion.log_probs},
                       {"finish_reason", name(completion.reason)},
                       {"preemptions", completion.preemptions},
                       {"shared_tokens", completion.shared_tokens}});
    if (session.tokenizer) samples.back()["text"] = session.tokenizer->decode(completion.tokens);
  }
  const nlohmann::ordered_json document{{"prompt_tokens", session.prompt},
                                        {"samples", samples},
                                        {"stats",
                                         {{"steps", stats.steps},
                                          {"computed_tokens", stats.computed_tokens},
                                          {"generated_tokens", stats.generated_tokens},
                                          {"preemptions", stats.preemptions},
                                          {"shared_tokens", stats.shared_tokens},
                                          {"seconds", stats.seconds},
                                          {"tokens_per_second", stats.tokens_per_second()}}}};
  fmt::print("{}\n", document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

Result<int> generate(const GenerateArguments& arguments) {
  CHORALE_RETURN_IF_ERROR(arguments.sampling.validate());
  CHORALE_ASSIGN_OR_RETURN(const ModelFolder folder, load_model_folder(arguments.folder));
  Session session{folder.config, {}, {}, {}};
  CHORALE_ASSIGN_OR_RETURN(session.tokenizer, load_tokenizer(arguments.folder));
  CHORALE_ASSIGN_OR_RETURN(session.prompt, read_prompt(arguments, session.tokenizer));
  CHORALE_ASSIGN_OR_RETURN(session.requests, make_requests(arguments, session.config, session.prompt));

  CHORALE_ASSIGN_OR_RETURN(const Config file, load_config(arguments));
  CHORALE_ASSIGN_OR_RETURN(const Roles roles, Roles::from(file));
  CHORALE_ASSIGN_OR_RETURN(RunConfig run, RunConfig::read_rollout(file));
  run.model = session.config;
  CHORALE_ASSIGN_OR_RETURN(const ResolvedRoles resolved, resolve(roles, session.config));
  CHORALE_ASSIGN_OR_RETURN(LayerAttentions attentions,
                           LayerAttentions::build(resolved, session.config.num_hidden_layers));
  CHORALE_ASSIGN_OR_RETURN(const Model model, Model::create(session.config, folder.parameters));
  CHORALE_ASSIGN_OR_RETURN(const GeneratorConfig config, generator_config(arguments, run, session));
  CHORALE_ASSIGN_OR_RETURN(Generator generator, Generator::create(model, std::move(attentions), config));
  CHORALE_ASSIGN_OR_RETURN(const std::vector<Completion> completions, generator.generate(session.requests));
  if (arguments.json)
    print_json(session, completions, generator.stats());
  else
    print_text(session, completions, generator.stats());
  return exit_ok;
}

}  // namespace

void add_generate_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = app.add_subcommand("generate", "Sample from a model folder");
  command
      ->add_option("folder", arguments->folder,
                   "Hugging Face model folder (config.json and model.safetensors)")
      ->required();
  CLI::Option_group* prompt = command->add_option_group("prompt");
  prompt->add_option("--prompt", arguments->prompt, "Text; the folder must have a chorale_tokenizer.json");
  prompt->add_option("--prompt-tokens", arguments->prompt_tokens, "Token numbers, as in 1,2,3")
      ->delimiter(',');
  prompt->require_option(1);
  command->add_option("--config", arguments->config,
                      "Which attention the rollout runs, and its cache, in YAML (default: auto)");
  command->add_option("--max-new-tokens", arguments->max_new_tokens,
                      "Default: 32, or what the model's positions leave");
  command->add_option("--temperature", arguments->sampling.temperature, "0: greedy")->capture_default_str();
  command->add_option("--top-k", arguments->sampling.top_k, "0: all tokens")->capture_default_str();
  command->add_option("--top-p", arguments->sampling.top_p)->capture_default_str();
  command->add_option("--seed", arguments->sampling.seed, "Of the first sample; the next ones count up")
      ->capture_default_str();
  command->add_option("--n", arguments->samples, "Samples of the prompt")->capture_default_str();
  command->add_option("--page-size", arguments->page_size,
                      "Tokens in a page of the KV cache (default: what the configuration says, else 16)");
  command->add_option(
      "--pages", arguments->pages,
      "Pages in the KV cache (default: what the configuration says, else as many as are of use)");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &action] { action = [arguments] { return generate(*arguments); }; });
}

}  // namespace chorale::app
