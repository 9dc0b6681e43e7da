#include "rl/run_config.h"

#include <fmt/format.h>

#include <bit>
#include <type_traits>

#include "roles/shape.h"

namespace chorale {
namespace {

// Least values of numbers that must be positive, and most values beyond any use: they catch slips of the
// keyboard.
constexpr double tiny = 1e-12, most_count = 1e6, most_tokens = 1e7, most_seed = 0x1p53;

std::string value_text(const std::string& value) { return value; }
std::string value_text(DType value) { return std::string(name(value)); }
std::string value_text(auto value) {
  return fmt::format("{}", value);
}  // the shortest text that reads back the same

// The place of a dotted key. The rollout's may stand in either shape.
Result<ConfigNode> find(const Config& config, std::string_view key) {
  constexpr std::string_view rollout = "rollout.";
  if (key.starts_with(rollout)) return find_role_key(config, Role::rollout, key.substr(rollout.size()));
  ConfigNode node = config.root();
  for (;;) {
    const std::size_t dot = std::min(key.find('.'), key.size());
    node = node[key.substr(0, dot)];
    if (dot == key.size()) return node;
    key.remove_prefix(dot + 1);
  }
}

Status read_setting(const Setting& setting, const Config& config) {
  CHORALE_ASSIGN_OR_RETURN(const ConfigNode node, find(config, setting.key));
  return std::visit(
      [&](auto* value) -> Status {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, DType>) {
          std::string text(name(*value));
          constexpr std::string_view known[] = {"float32", "bfloat16"};
          CHORALE_RETURN_IF_ERROR(node.read_choice(text, known));
          CHORALE_ASSIGN_OR_RETURN(*value, parse_dtype(text));
          return {};
        } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, bool>) {
          return node.read(*value);
        } else if constexpr (std::is_integral_v<T>) {
          return node.read(*value, static_cast<std::int64_t>(setting.least),
                           static_cast<std::int64_t>(setting.most));
        } else {
          return node.read(*value, setting.least, setting.most);
        }
      },
      setting.value);
}

Status error_at(const Config& config, std::string_view key, std::string_view message) {
  CHORALE_ASSIGN_OR_RETURN(const ConfigNode node, find(config, key));
  return node.error(message);
}

// What no key of `rollout` says alone. (Its kv_cache_dtype is for Roles to judge.)
Status check_rollout(const Config& config, const RunConfig::Rollout& rollout) {
  if (!std::has_single_bit(static_cast<unsigned>(rollout.page_size)))
    return error_at(config, "rollout.page_size",
                    fmt::format("is {}: must be a power of two", rollout.page_size));
  if (rollout.preemption != "recompute" && rollout.preemption != "swap")
    return error_at(config, "rollout.preemption",
                    fmt::format("is '{}': must be recompute or swap", rollout.preemption));
  if (rollout.max_running > rollout.tokens_per_step)
    return error_at(config, "rollout.max_running",
                    fmt::format("is {}: must be at most the {} tokens of a step", rollout.max_running,
                                rollout.tokens_per_step));
  return {};
}

// What no key says alone.
Status check_together(const Config& config, const RunConfig& run) {
  const auto at = [&](std::string_view key, const Status& status) {
    return status.is_ok() ? status : error_at(config, key, status.message());
  };
  CHORALE_RETURN_IF_ERROR(at("task", run.task.validate()));
  CHORALE_RETURN_IF_ERROR(at("model", run.model.validate()));
  if (run.grpo.minibatches > run.grpo.prompts)
    return error_at(config, "grpo.minibatches",
                    fmt::format("is {}: must be at most the {} prompts of a step", run.grpo.minibatches,
                                run.grpo.prompts));
  CHORALE_RETURN_IF_ERROR(check_rollout(config, run.rollout));
  const RunConfig::Rollout& rollout = run.rollout;
  if (rollout.pages * rollout.page_size < run.model.max_position_embeddings)
    return error_at(config, "rollout.pages",
                    fmt::format("is {}: pages of {} tokens must hold a sequence of {}", rollout.pages,
                                rollout.page_size, run.model.max_position_embeddings));
  if (run.name.empty() || run.name.find('/') != std::string::npos || run.name.starts_with('.'))
    return error_at(
        config, "name",
        fmt::format("'{}' names a folder: it must not be empty, contain '/' or begin with '.'", run.name));
  return {};
}

}  // namespace

std::string Setting::text() const {
  return std::visit([](const auto* pointer) { return value_text(*pointer); }, value);
}

std::vector<Setting> settings(RunConfig& c) {
  return {
      {"name", &c.name, 0, 0, false},
      {"seed", &c.seed, 0, most_seed},
      {"threads", &c.threads, 0, 1024, false},

      {"model.hidden_size", &c.model.hidden_size, 1, most_count},
      {"model.intermediate_size", &c.model.intermediate_size, 1, most_count},
      {"model.num_hidden_layers", &c.model.num_hidden_layers, 1, 1000},
      {"model.num_attention_heads", &c.model.num_attention_heads, 1, 1000},
      {"model.num_key_value_heads", &c.model.num_key_value_heads, 1, 1000},
      {"model.head_dim", &c.model.head_dim, 2, Problem::max_head_dim},
      {"model.rms_norm_eps", &c.model.rms_norm_eps, tiny, 1},
      {"model.rope_theta", &c.model.rope_theta, 1, 1e9},
      {"model.tie_word_embeddings", &c.model.tie_word_embeddings},
      {"model.compute_dtype", &c.model.compute_dtype},

      {"task.min_digits", &c.task.min_digits, 1, TaskConfig::most_digits},
      {"task.max_digits", &c.task.max_digits, 1, TaskConfig::most_digits},
      {"task.held_out_fraction", &c.task.held_out_fraction, tiny, 1 - tiny},

      {"warmup.steps", &c.warmup.steps, 0, most_count},
      {"warmup.prompts", &c.warmup.prompts, 1, most_count},
      {"warmup.learning_rate", &c.warmup.learning_rate, tiny, 10},

      {"grpo.steps", &c.grpo.steps, 0, most_count, false},
      {"grpo.prompts", &c.grpo.prompts, 1, most_count},
      {"grpo.group_size", &c.grpo.group_size, 2, most_count},
      {"grpo.epochs", &c.grpo.epochs, 1, 1000},
      {"grpo.minibatches", &c.grpo.minibatches, 1, most_count},
      {"grpo.clip_low", &c.loss.clip_low, 0, 1},
      {"grpo.clip_high", &c.loss.clip_high, 0, 100},
      {"grpo.kl_coefficient", &c.loss.kl_coefficient, 0, 100},
      {"grpo.advantage_epsilon", &c.loss.advantage_epsilon, tiny, 1},

      {"rollout.temperature", &c.rollout.temperature, 0.01, 100},
      {"rollout.page_size", &c.rollout.page_size, 1, 256, false},
      {"rollout.pages", &c.rollout.pages, 1, 1e9, false},
      {"rollout.max_running", &c.rollout.max_running, 1, most_count, false},
      {"rollout.tokens_per_step", &c.rollout.tokens_per_step, 1, most_tokens, false},
      {"rollout.preemption", &c.rollout.preemption, 0, 0, false},
      {"rollout.kv_cache_dtype", &c.rollout.kv_cache_dtype},
      {"rollout.kv_cache_scale", &c.rollout.kv_cache_scale, 1e-6, 1e6},

      {"optimizer.learning_rate", &c.optimizer.learning_rate, tiny, 10},
      {"optimizer.warmup_steps", &c.optimizer.warmup_steps, 0, most_count},
      {"optimizer.beta1", &c.optimizer.beta1, 0, 0.9999999},
      {"optimizer.beta2", &c.optimizer.beta2, 0, 0.9999999},
      {"optimizer.epsilon", &c.optimizer.epsilon, tiny, 1},
      {"optimizer.weight_decay", &c.optimizer.weight_decay, 0, 100},
      {"optimizer.max_grad_norm", &c.optimizer.max_grad_norm, 0, most_tokens},

      {"trainer.tokens_per_pack", &c.trainer.tokens_per_pack, 1, most_tokens},
      {"trainer.save_every", &c.trainer.save_every, 0, most_count, false},
      {"trainer.evaluate_every", &c.trainer.evaluate_every, 0, most_count, false},
      {"trainer.evaluation_prompts", &c.trainer.evaluation_prompts, 1, most_count, false},
  };
}

Result<RunConfig> RunConfig::read(const Config& config) {
  RunConfig run;
  for (const Setting& setting : settings(run)) CHORALE_RETURN_IF_ERROR(read_setting(setting, config));
  for (const std::string_view key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                                     "num_attention_heads", "num_key_value_heads", "head_dim"})
    CHORALE_RETURN_IF_ERROR(config["model"][key].required());

  run.model.vocab_size = SumOfDigits::vocab_size;
  run.model.eos_token_id = SumOfDigits::end;
  run.model.max_position_embeddings = run.task.longest_prompt() + run.task.longest_answer();
  CHORALE_RETURN_IF_ERROR(check_together(config, run));
  return run;
}

Result<RunConfig> RunConfig::read_rollout(const Config& config) {
  RunConfig run;
  for (const Setting& setting : settings(run))
    if (setting.key.starts_with("rollout.")) CHORALE_RETURN_IF_ERROR(read_setting(setting, config));
  CHORALE_RETURN_IF_ERROR(check_rollout(config, run.rollout));
  CHORALE_ASSIGN_OR_RETURN(const ConfigNode pages, find(config, "rollout.pages"));
  if (!pages.exists()) run.rollout.pages = 0;  // the default is for runs
  allow_keys_of_runs(config);
  CHORALE_RETURN_IF_ERROR(config.reject_unknown());
  return run;
}

GeneratorConfig RunConfig::generator() const {
  return {
      .page_size = rollout.page_size,
      .pages = rollout.pages,
      .key_scales = kv_scales(),
      .value_scales = kv_scales(),
      .scheduler = {.tokens_per_step = rollout.tokens_per_step,
                    .max_running = rollout.max_running,
                    .preemption = rollout.preemption == "swap" ? Preemption::swap : Preemption::recompute},
      .threads = threads};
}

std::vector<float> RunConfig::kv_scales() const {
  const std::size_t heads =
      static_cast<std::size_t>(model.num_hidden_layers) * static_cast<std::size_t>(model.num_key_value_heads);
  return std::vector<float>(has_8_bit_cache() ? heads : 0, rollout.kv_cache_scale);
}

std::map<std::string, std::string> identity(const RunConfig& config) {
  RunConfig copy = config;
  std::map<std::string, std::string> texts;
  for (const Setting& setting : settings(copy))
    if (setting.decides_bits) texts.emplace(setting.key, setting.text());
  return texts;
}

}  // namespace chorale
