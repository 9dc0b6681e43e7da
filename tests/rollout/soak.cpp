// A long rollout: requests of random lengths arrive in groups with one prompt, in a pool that is too small
// for them, so that sequences fork, wait, are preempted and come back. Each completion is compared to the bit
// with the same request run alone, after each step the pages must add up, and memory may not grow.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <map>
#include <random>

#include "rollout/fixture.h"
#include "sanitized.h"

namespace chorale {
namespace {

struct Setting {
  std::string_view name;
  Preemption preemption;
  std::optional<DType> kv_dtype;
};
constexpr Setting settings[] = {{"bfloat16, recompute", Preemption::recompute, {}},
                                {"bfloat16, swap", Preemption::swap, {}},
                                {"float8_e4m3, recompute", Preemption::recompute, DType::float8_e4m3},
                                {"float8_e4m3, swap", Preemption::swap, DType::float8_e4m3}};

constexpr int page_size = 8;
constexpr std::int64_t pages = 30, most_waiting = 40;
constexpr double most_growth = sanitized ? 400 : 8;  // MiB, from a quarter of the way on

double resident_mib() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t size = 0, resident = 0;
  statm >> size >> resident;
  return static_cast<double>(resident * ::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

GeneratorConfig config_for(const Setting& setting) {
  GeneratorConfig config{
      .page_size = page_size,
      .pages = pages,
      .scheduler = {.tokens_per_step = 48, .max_running = 20, .preemption = setting.preemption},
      .threads = 1};
  if (setting.kv_dtype) {  // 2 layers of 2 heads
    config.key_scales = {0.02f, 0.5f, 1, 0.013f};
    config.value_scales = {0.1f, 3, 0.25f, 1};
  }
  return config;
}

// Groups of one to eight requests; a new prompt may begin as an earlier one did.
class Arrivals {
 public:
  explicit Arrivals(std::uint64_t seed) : random_(seed) {}

  Request next() {
    if (left_ == 0) start_group();
    --left_;
    const auto id = ++requests_;
    return {.id = id,
            .prompt = prompt_,
            .max_new_tokens = 1 + below(below(4) == 0 ? 120 : 30),
            .sampling = {.temperature = below(5) == 0 ? 0.f : 0.5f + 0.25f * static_cast<float>(below(4)),
                         .top_k = below(4) == 0 ? 7 : 0,
                         .top_p = below(4) == 0 ? 0.8f : 1.f,
                         .seed = static_cast<std::uint64_t>(id)},
            .stop_tokens = {3}};
  }
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }

 private:
  void start_group() {
    left_ = 1 + below(8);
    prompt_.resize(below(2) == 0 ? static_cast<std::size_t>(below(std::ssize(prompt_) + 1)) : 0);
    const std::int64_t length =
        std::max<std::int64_t>(std::ssize(prompt_), 1 + below(below(6) == 0 ? 100 : 40));
    while (std::ssize(prompt_) < length) prompt_.push_back(static_cast<std::int32_t>(below(37)));
  }
  std::mt19937_64 random_;
  std::int64_t left_ = 0, requests_ = 0;
  std::vector<std::int32_t> prompt_;
};

// "" or what is wrong.
std::string soak(const Setting& setting, std::int64_t count, std::uint64_t seed) {
  const Model model = small_model(DType::bfloat16);
  const AttentionOptions options{.kv_dtype = setting.kv_dtype};
  Generator generator = make(model, config_for(setting), options);
  GeneratorConfig roomy = config_for(setting);
  roomy.page_size = 16;  // the page size changes no bit
  Generator alone = make(model, roomy, options);
  Arrivals arrivals(seed);
  std::map<RequestId, Request> waiting;
  std::int64_t submitted = 0, finished = 0, most_used = 0;
  double early = 0;
  while (finished < count) {
    for (std::int64_t i = arrivals.below(3); i > 0 && submitted < count && std::ssize(waiting) < most_waiting;
         --i) {
      const Request request = arrivals.next();
      if (const Status status = generator.submit(request); !status.is_ok()) return status.message();
      waiting[request.id] = request;
      ++submitted;
    }
    const auto completions = generator.step();
    if (!completions) return completions.status().message();
    for (const Completion& completion : *completions) {
      const auto request = waiting.find(completion.id);
      const auto expected = alone.generate(std::span(&request->second, 1));
      if (!expected) return expected.status().message();
      if (std::string other = difference(expected->front(), completion); !other.empty()) return other;
      waiting.erase(request);
      if (++finished == count / 4) early = resident_mib();
    }
    const KvCache& cache = generator.cache();
    if (cache.free_pages() + cache.used_pages() != pages)
      return fmt::format("{} pages are free and {} used, of {}", cache.free_pages(), cache.used_pages(),
                         pages);
    most_used = std::max(most_used, cache.used_pages());
  }
  const GeneratorStats stats = generator.stats();
  const double late = resident_mib();
  fmt::print("{:<24} {:>8} {:>8} {:>9} {:>6} {:>9} {:>12} {:>10.1f} {:>8.1f}\n", setting.name, finished,
             stats.generated_tokens, stats.preemptions, stats.forks, stats.shared_tokens, most_used, late,
             late - early);
  std::fflush(stdout);
  if (generator.cache().used_pages() != 0)
    return fmt::format("{} pages are still used at the end", generator.cache().used_pages());
  if (stats.preemptions == 0 || stats.forks == 0 || stats.shared_tokens == 0)
    return "nothing was preempted, forked or shared: a test of nothing";
  if (late - early > most_growth)
    return fmt::format("memory grew from {:.1f} to {:.1f} MiB: may grow by {}", early, late, most_growth);
  return "";
}

}  // namespace
}  // namespace chorale

int main(int argc, char** argv) {
  CLI::App cli{"A long rollout under pressure, each request compared with itself alone", "soak"};
  std::int64_t requests = 2000;
  std::uint64_t seed = 1;
  cli.add_option("--requests", requests, "for each setting")
      ->check(CLI::Range(8, 100'000'000))
      ->capture_default_str();
  cli.add_option("--seed", seed)->capture_default_str();
  CLI11_PARSE(cli, argc, argv);
  fmt::print("{:<24} {:>8} {:>8} {:>9} {:>6} {:>9} {:>12} {:>10} {:>8}\n", "cache, preemption", "requests",
             "tokens", "preempted", "forked", "shared", "pages in use", "MiB", "growth");
  for (const chorale::Setting& setting : chorale::settings) {
    const std::string wrong = chorale::soak(setting, requests, seed);
    if (wrong.empty()) continue;
    fmt::print(stderr, "soak: {} (seed {}): {}\n", setting.name, seed, wrong);
    return 1;
  }
  fmt::print("every request has the tokens and bits of itself alone\n");
}
