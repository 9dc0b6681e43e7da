// chorale verify FILE [key=value ...] [--model FOLDER] [--device cuda]: whether trainer and rollout compute
// the same bits, and if not, where they part. On a GPU runs attention alone: its tensors are copied there and
// back, and the rest of the model runs here.
#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "chorale/roles.h"
#include "commands.h"
#include "implementations/cuda/staged_attention.h"
#include "model/hugging_face.h"
#include "rl/run_config.h"
#include "rl/verify.h"
#include "roles/config.h"
#include "roles/shape.h"
#include "roles/state.h"

namespace chorale::app {
namespace {

struct VerifyArguments {
  std::string file, model, device = "cpu";
  std::vector<std::string> overrides;
  VerifyConfig config;
  bool json = false;
};

// --model is what the path in the file's model section would say; quoted, because the value is read as YAML.
Result<Config> load_config(const VerifyArguments& arguments) {
  CHORALE_ASSIGN_OR_RETURN(Config config, Config::load(arguments.file, arguments.overrides));
  if (arguments.model.empty()) return config;
  const ConfigNode section = find_model_section(config);
  std::string quoted = "'";
  for (const char c : arguments.model) quoted += c == '\'' ? "''" : std::string(1, c);
  std::vector<std::string> overrides = arguments.overrides;
  overrides.push_back(
      fmt::format("{}.path={}'", section.exists() ? section.path() : std::string("model"), quoted));
  return Config::load(arguments.file, overrides);
}

// The file's own words about the model may change its attention (a mask) and its compute type, not its shape.
Status check_problem(const Problem& problem, const ModelConfig& model, const std::string& folder) {
  const Problem own = model.problem();
  const auto differ = [&](std::string_view key, int said, int is) {
    return Status::invalid_argument(fmt::format("model.{} {}: {} has {}", key, said, folder, is));
  };
  if (problem.query_heads != own.query_heads)
    return differ("num_attention_heads", problem.query_heads, own.query_heads);
  if (problem.kv_heads != own.kv_heads) return differ("num_key_value_heads", problem.kv_heads, own.kv_heads);
  if (problem.head_dim != own.head_dim) return differ("head_dim", problem.head_dim, own.head_dim);
  if (problem.value_dim() != own.head_dim) return differ("value_head_dim", problem.value_dim(), own.head_dim);
  if (problem.sinks) return Status::unsupported("model.sinks true: a Qwen3 model has no attention sinks");
  return Status::ok();
}

// What runs, a line for each role, phase and range of layers.
std::string describe(const ResolvedRoles& resolved, const Device& device) {
  std::string text =
      fmt::format("Attention on {}, everything else on {}\n", device.describe(), Device::cpu().describe());
  for (const auto& [role, resolutions] : resolved.roles)
    for (const Resolution& r : resolutions)
      text += fmt::format("  {} {}, {}: {} {}\n", name(role), name(r.phase),
                          describe_layers(r.first_layer, r.last_layer), r.implementation,
                          r.fingerprint.to_string());
  return text + "\n";
}

// Attention on a GPU, for a model whose tensors are in host memory.
struct OnGpu {
  ResolvedRoles resolved;
  std::unique_ptr<cuda::StagedAttention> attention;  // what all of them build
};
Result<OnGpu> resolve_on_gpu(const Roles& roles, const Problem& problem, const Device& device, int layers) {
  const auto gpu = cuda::Gpu::get(device.ordinal);
  if (!gpu) return gpu.status().with_context("--device cuda");
  CHORALE_ASSIGN_OR_RETURN(ResolvedRoles resolved, roles.resolve_compared(problem, device, layers));
  OnGpu on_gpu{std::move(resolved), std::make_unique<cuda::StagedAttention>(**gpu)};
  for (auto& [role, resolutions] : on_gpu.resolved.roles)
    for (Resolution& resolution : resolutions) resolution.chosen = on_gpu.attention.get();
  return on_gpu;
}

Result<int> run_verify(const VerifyArguments& arguments) {
  CHORALE_ASSIGN_OR_RETURN(const Device device, Device::parse(arguments.device));
  const bool on_cpu = device.kind == Device::Kind::cpu;
  CHORALE_ASSIGN_OR_RETURN(const Config config, load_config(arguments));
  CHORALE_ASSIGN_OR_RETURN(const Roles roles, Roles::from(config));
  std::string folder;
  CHORALE_RETURN_IF_ERROR(find_model_section(config)["path"].read(folder));
  CHORALE_ASSIGN_OR_RETURN(RunConfig run, RunConfig::read_rollout(config));
  if (folder.empty())
    return Status::invalid_argument(
        fmt::format("{}: has no model.path: say which model with --model FOLDER", arguments.file));
  CHORALE_ASSIGN_OR_RETURN(const Problem problem, roles.problem());
  CHORALE_ASSIGN_OR_RETURN(const ModelFolder loaded, load_model_folder(folder));
  CHORALE_RETURN_IF_ERROR(check_problem(problem, loaded.config, folder));
  run.model = loaded.config;
  run.model.compute_dtype = problem.dtype;

  OnGpu on_gpu;
  ResolvedRoles& resolved = on_gpu.resolved;
  if (on_cpu) {
    CHORALE_ASSIGN_OR_RETURN(resolved, roles.resolve_all(problem, device, run.model.num_hidden_layers));
  } else {
    CHORALE_ASSIGN_OR_RETURN(on_gpu, resolve_on_gpu(roles, problem, device, run.model.num_hidden_layers));
  }
  for (const std::string& warning : resolved.warnings) fmt::print(stderr, "chorale: warning: {}\n", warning);
  CHORALE_RETURN_IF_ERROR(resolved.check());
  CHORALE_ASSIGN_OR_RETURN(const Model model, Model::create(run.model, loaded.parameters));

  VerifyConfig verify_config = arguments.config;
  verify_config.temperature = run.rollout.temperature;
  verify_config.generator = run.generator();
  verify_config.float64 = !on_cpu;
  CHORALE_ASSIGN_OR_RETURN(const VerifyReport report, verify(model, resolved, verify_config));
  if (!on_cpu && !arguments.json) fmt::print("{}", describe(resolved, device));
  fmt::print("{}", arguments.json ? report.to_json() + "\n" : report.text());
  return report.passes() ? exit_ok : exit_differs;
}

}  // namespace

void add_verify_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<VerifyArguments>();
  CLI::App* command = app.add_subcommand("verify", "Compare what trainer and rollout compute, bit for bit");
  command->add_option("file", arguments->file, "The configuration, in YAML: roles, rollout and model.path")
      ->required();
  command->add_option("overrides", arguments->overrides, "key=value, in the place of what the file says");
  command->add_option("--model", arguments->model, "Hugging Face model folder, in the place of model.path");
  command
      ->add_option("--device", arguments->device,
                   "Where attention runs: cpu, cuda or cuda:N; on a GPU it is compared with float64, too")
      ->capture_default_str();
  command->add_option("--requests", arguments->config.requests, "Sequences to generate")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  command
      ->add_option("--max-new-tokens", arguments->config.max_new_tokens,
                   "Of each sequence (default: 32, or half of the model's positions where that is less)")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30));
  command
      ->add_option("--seed", arguments->config.seed,
                   "Of the prompts, which are random tokens, and the sampling")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &action] { action = [arguments] { return run_verify(*arguments); }; });
}

}  // namespace chorale::app
