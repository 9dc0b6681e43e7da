// chorale bench FILE [key=value ...] [--role rollout] [--device cuda] [--batch N] [--length N]: how fast the
// attention runs that a role would use, against the machine's limits from the same run.
#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/threads.h"
#include "bench/peaks.h"
#include "bench_timing.h"
#include "bench_work.h"
#include "commands.h"
#include "implementations/cuda/staged_attention.h"
#include "rollout_file.h"

namespace chorale::app {
namespace {

struct BenchArguments {
  std::string file, role = "rollout", device = "cpu";
  std::vector<std::string> overrides;
  int batch = 4, length = 1024;
  double seconds = 1;
  bool json = false;
};

// Operations and bytes a second. 0: not measured here.
struct Limits {
  double operations = 0, bandwidth = 0;
};

struct Row {
  Resolution resolution;
  Timing timing;
  double operations, bytes;
};

Result<Role> parse_role(const std::string& text) {
  for (const Role role : all_roles)
    if (name(role) == text) return role;
  return Status::invalid_argument(
      fmt::format("role {}: must be actor, rollout, ref, critic or reward_model", text));
}

Result<Timing> time_phase(const Resolution& resolution, const Work& work, double seconds) {
  CHORALE_ASSIGN_OR_RETURN(const Attention attention, resolution.build());
  CHORALE_ASSIGN_OR_RETURN(const std::shared_ptr<const Plan> plan, attention.plan(work.batch()));
  if (resolution.device.kind == Device::Kind::cpu)
    return time_on_cpu([&] { return attention.forward(*plan, work.tensors()); }, seconds);
  CHORALE_ASSIGN_OR_RETURN(const cuda::Gpu* gpu, cuda::Gpu::get(resolution.device.ordinal));
  CHORALE_ASSIGN_OR_RETURN(const cuda::StagedTensors staged,
                           cuda::StagedTensors::create(*gpu, work.tensors()));
  CHORALE_RETURN_IF_ERROR(staged.to_device());
  ForwardTensors tensors = staged.tensors();
  return time_on_gpu(
      *gpu,
      [&](cuda::Stream stream) {
        tensors.stream = stream;
        return attention.forward(*plan, tensors);
      },
      seconds);
}

Result<Limits> measure_limits(const Device& device, DType dtype, double seconds) {
  if (device.kind == Device::Kind::cpu) {
    const int threads = default_threads();
    return Limits{bench::peak_flops(dtype == DType::bfloat16, threads), bench::peak_bandwidth(threads)};
  }
  CHORALE_ASSIGN_OR_RETURN(const cuda::Gpu* gpu, cuda::Gpu::get(device.ordinal));
  CHORALE_ASSIGN_OR_RETURN(const double bandwidth, copy_bandwidth(*gpu, seconds / 4));
  return Limits{0, bandwidth};
}

// A decode is bound by bytes, the others by operations.
bool counts_bytes(const Row& row) { return row.resolution.phase == Phase::decode; }
double rate_of(const Row& row) {
  return (counts_bytes(row) ? row.bytes : row.operations) / row.timing.seconds;
}
double limit_of(const Row& row, const Limits& limits) {
  return counts_bytes(row) ? limits.bandwidth : limits.operations;
}

// "4.27 TFLOP/s", "812.0 GB/s".
std::string describe_rate(double rate, bool bytes) {
  const bool tera = !bytes && rate >= 1e12;
  return fmt::format("{:.{}f} {}{}", rate / (tera ? 1e12 : 1e9), tera ? 2 : 1, tera ? "T" : "G",
                     bytes ? "B/s" : "FLOP/s");
}

std::string describe_limit(const Row& row, const Limits& limits) {
  const double limit = limit_of(row, limits);
  if (limit == 0) return "";
  const bool on_gpu = row.resolution.device.kind == Device::Kind::cuda;
  return fmt::format(", {:.0f}% of the {} of {} in this run", 100 * rate_of(row) / limit,
                     describe_rate(limit, counts_bytes(row)),
                     !counts_bytes(row) ? "products alone"
                     : on_gpu           ? "a copy (read and written)"
                                        : "reading memory");
}

void print_text(const std::vector<Row>& rows, const Limits& limits, const Device& device, int page_size,
                const BenchArguments& arguments) {
  fmt::print("{}\n{}\n", device.describe(), rows.front().resolution.problem.describe());
  for (const Row& row : rows) {
    fmt::print("{} {}: {} {}\n", name(row.resolution.role), name(row.resolution.phase),
               row.resolution.implementation, row.resolution.fingerprint.to_string());
    fmt::print("  {} x {}, {}: {:.1f} us (spread {:.0f}%), {}{}\n", arguments.batch, arguments.length,
               row.resolution.phase == Phase::forward ? "packed"
                                                      : fmt::format("pages of {} in random order", page_size),
               row.timing.seconds * 1e6, row.timing.spread * 100,
               describe_rate(rate_of(row), counts_bytes(row)), describe_limit(row, limits));
  }
}

void print_json(const std::vector<Row>& rows, const Limits& limits, const Device& device,
                const BenchArguments& arguments) {
  nlohmann::ordered_json document{{"device", device.describe()},
                                  {"problem", rows.front().resolution.problem.describe()},
                                  {"batch", arguments.batch},
                                  {"length", arguments.length},
                                  {"phases", nlohmann::ordered_json::array()}};
  for (const Row& row : rows)
    document["phases"].push_back({{"role", name(row.resolution.role)},
                                  {"phase", name(row.resolution.phase)},
                                  {"implementation", row.resolution.implementation},
                                  {"fingerprint", row.resolution.fingerprint.to_string()},
                                  {"seconds", row.timing.seconds},
                                  {"spread", row.timing.spread},
                                  {"unit", counts_bytes(row) ? "bytes" : "operations"},
                                  {"rate", rate_of(row)},
                                  {"limit", limit_of(row, limits)}});
  fmt::print("{}\n", document.dump(2));
}

Result<int> run_bench(const BenchArguments& arguments) {
  CHORALE_ASSIGN_OR_RETURN(const Role role, parse_role(arguments.role));
  CHORALE_ASSIGN_OR_RETURN(const Device device, Device::parse(arguments.device));
  if (device.kind == Device::Kind::cuda)
    if (const auto gpu = cuda::Gpu::get(device.ordinal); !gpu)
      return gpu.status().with_context("--device cuda");
  CHORALE_ASSIGN_OR_RETURN(const RolloutFile file, read_rollout_file(arguments.file, arguments.overrides));
  const auto& [roles, run, problem] = file;

  std::vector<Row> rows;
  for (const Phase phase : phases(role)) {
    if (phase == Phase::backward) continue;
    CHORALE_ASSIGN_OR_RETURN(Resolution resolution, roles.resolve(role, problem, device, 0, phase));
    CHORALE_ASSIGN_OR_RETURN(const Work work, Work::create(problem, {phase, arguments.batch, arguments.length,
                                                                     run.rollout.page_size}));
    CHORALE_ASSIGN_OR_RETURN(const Timing timing, time_phase(resolution, work, arguments.seconds));
    rows.push_back({std::move(resolution), timing, work.operations(), work.bytes()});
  }
  CHORALE_ASSIGN_OR_RETURN(const Limits limits, measure_limits(device, problem.dtype, arguments.seconds));
  if (arguments.json)
    print_json(rows, limits, device, arguments);
  else
    print_text(rows, limits, device, run.rollout.page_size, arguments);
  return exit_ok;
}

}  // namespace

void add_bench_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<BenchArguments>();
  CLI::App* command =
      app.add_subcommand("bench", "Say how fast the attention of a role runs on this machine");
  command->add_option("file", arguments->file, "The configuration, in YAML, with a model section")
      ->required();
  command->add_option("overrides", arguments->overrides, "key=value, in the place of what the file says");
  command->add_option("--role", arguments->role, "Whose attention of layer 0, in each phase but backward")
      ->capture_default_str();
  command->add_option("--device", arguments->device, "Where it runs: cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_option("--batch", arguments->batch, "Sequences")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--length", arguments->length, "Tokens of each; a decode computes the last of them")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--seconds", arguments->seconds, "For each phase")
      ->check(CLI::Range(0.0, 600.0))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &action] { action = [arguments] { return run_bench(*arguments); }; });
}

}  // namespace chorale::app
