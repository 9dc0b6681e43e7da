#include "base/settings.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace chorale {
namespace {

constexpr int max_threads = 1024;

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::optional<int> parse_threads(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > max_threads)
    return std::nullopt;
  return value;
}

}  // namespace

Settings read_settings() {
  Settings settings;
  settings.attn_implementation = variable("CHORALE_ATTN_IMPLEMENTATION");
  settings.verl_attn_implementation = variable("VERL_ATTN_IMPLEMENTATION");
  if (const auto text = variable("CHORALE_NUM_THREADS")) settings.threads = parse_threads(*text).value_or(0);
  settings.simd = variable("CHORALE_SIMD");
  settings.nvrtc = variable("CHORALE_NVRTC");
  settings.kernel_cache = variable("CHORALE_KERNEL_CACHE");
  settings.cuda_home = variable("CUDA_HOME");
  if (!settings.cuda_home) settings.cuda_home = variable("CUDA_PATH");
  settings.virtual_env = variable("VIRTUAL_ENV");
  settings.user_cache = variable("XDG_CACHE_HOME");
  if (const auto home = variable("HOME"); !settings.user_cache && home)
    settings.user_cache = *home + "/.cache";
  settings.started_by_mpi_launcher = variable("PMIX_RANK") || variable("PMI_RANK");
  return settings;
}

std::string describe_settings_problems() {
  std::string problems;
  if (const auto text = variable("CHORALE_NUM_THREADS"); text && !parse_threads(*text))
    problems += fmt::format("CHORALE_NUM_THREADS is '{}': must be a number from 1 to {}", *text, max_threads);
  if (const auto text = variable("CHORALE_SIMD");
      text && *text != "avx2" && *text != "avx512" && *text != "avx512_bf16" && *text != "amx")
    problems += fmt::format("{}CHORALE_SIMD is '{}': must be avx2, avx512, avx512_bf16 or amx",
                            problems.empty() ? "" : "; ", *text);
  return problems;
}

}  // namespace chorale
