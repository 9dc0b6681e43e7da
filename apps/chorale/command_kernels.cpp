// chorale kernels FILE [key=value ...] [--arch sm_90a]: the GPU kernels that a configuration needs, compiled
// ahead of time. Needs no GPU.
#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/threads.h"
#include "commands.h"
#include "implementations/cuda/compiler.h"
#include "implementations/cuda/cubin.h"
#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/nvrtc.h"
#include "implementations/cuda/source.h"
#include "rollout_file.h"

namespace chorale::app {
namespace {

using cuda::CompiledKernel;
using cuda::KernelKey;

struct KernelsArguments {
  std::string file;
  std::vector<std::string> overrides;
  std::string arch = cuda::hopper;
  bool source = false, list = false, json = false;
};

struct CompiledKey {
  KernelKey key;
  Result<CompiledKernel> kernel = Status::internal("not compiled");
};

// What roles with packed keys need and what the rollout's pages need.
std::vector<KernelKey> kernels_of(const Problem& problem, int page_size) {
  std::vector<KernelKey> keys;
  for (const int page : {0, page_size}) {
    if (problem.has_kv_scales()) keys.push_back(cuda::kernel_key(cuda::KernelKind::widen, problem, page));
    if (const KernelKey key = cuda::kernel_key(cuda::KernelKind::forward, problem, page);
        std::ranges::find(keys, key) == keys.end())
      keys.push_back(key);
  }
  for (const int cluster : {1, 2})  // of many keys, of few
    keys.push_back(cuda::kernel_key(cuda::KernelKind::decode, problem, page_size, {1, cluster}));
  keys.push_back(cuda::kernel_key(cuda::KernelKind::store, problem, page_size));
  keys.push_back(cuda::kernel_key(cuda::KernelKind::copy_pages, problem, page_size));
  return keys;
}

nlohmann::json facts(const CompiledKey& row) {
  nlohmann::json json{{"kernel", row.key.describe()}};
  if (!row.kernel) return json["error"] = row.kernel.status().message(), json;
  const auto resources = cuda::read_resources(row.kernel->log, row.key.entry());
  if (resources) {
    json["registers"] = resources->registers;
    json["stack_bytes"] = resources->stack_bytes;
    json["spill_bytes"] = resources->spill_stores + resources->spill_loads;
    json["static_shared_bytes"] = resources->shared_bytes;
  }
  if (const auto shape = cuda::launch_shape(row.key, *row.kernel)) {
    json["threads"] = shape->threads;
    json["dynamic_shared_bytes"] = shape->shared_bytes;
  }
  json["seconds"] = row.kernel->seconds;
  json["cached"] = row.kernel->from_cache;
  json["cubin_bytes"] = row.kernel->cubin.size();
  if (!row.kernel->cache_note.empty()) json["cache_note"] = row.kernel->cache_note;
  return json;
}

void print_table(const std::vector<CompiledKey>& rows, const std::string& arch, const std::string& folder) {
  std::size_t width = 0;
  for (const CompiledKey& row : rows) width = std::max(width, row.key.describe().size());
  fmt::print("{:<{}} {:>8} {:>9} {:>7} {:>7} {:>9} {:>8}\n", fmt::format("for {}", arch), width, "threads",
             "registers", "stack B", "spill B", "shared B", "compiled");
  for (const CompiledKey& row : rows) {
    if (!row.kernel) {
      fmt::print("{:<{}} {}\n", row.key.describe(), width, row.kernel.status().message());
      continue;
    }
    const nlohmann::json f = facts(row);
    fmt::print("{:<{}} {:>8} {:>9} {:>7} {:>7} {:>9} {:>6.1f} s{}\n", row.key.describe(), width,
               f.value("threads", 0), f.value("registers", 0), f.value("stack_bytes", 0),
               f.value("spill_bytes", 0),
               f.value("static_shared_bytes", 0) + f.value("dynamic_shared_bytes", 0), row.kernel->seconds,
               row.kernel->from_cache ? ", kept" : "");
  }
  std::vector<std::string> notes;
  for (const CompiledKey& row : rows)
    if (row.kernel && !row.kernel->cache_note.empty()) notes.push_back(row.kernel->cache_note);
  notes.erase(std::unique(notes.begin(), notes.end()), notes.end());
  for (const std::string& note : notes) fmt::print("note: {}\n", note);
  if (notes.empty()) fmt::print("kept in {}\n", folder);
}

void print_sources(const std::vector<CompiledKey>& rows) {
  for (const CompiledKey& row : rows) fmt::print("{}\n", cuda::kernel_source(row.key));
  fmt::print("// program.cuh\n{}", rows.front().key.program);  // a problem's kernels share it
}

Result<int> run_kernels(const KernelsArguments& arguments) {
  CHORALE_ASSIGN_OR_RETURN(const RolloutFile file, read_rollout_file(arguments.file, arguments.overrides));
  const Problem& problem = file.problem;
  CHORALE_RETURN_IF_ERROR(cuda::supports_problem(problem));

  std::vector<CompiledKey> rows;
  for (KernelKey& key : kernels_of(problem, file.run.rollout.page_size)) rows.push_back({std::move(key)});
  if (arguments.list) {
    for (const CompiledKey& row : rows) fmt::print("{}\n", row.key.describe());
    return exit_ok;
  }
  if (arguments.source) {
    print_sources(rows);
    return exit_ok;
  }
  CHORALE_ASSIGN_OR_RETURN(const cuda::Nvrtc* nvrtc, cuda::Nvrtc::get());
  const cuda::KernelCache cache(cuda::KernelCache::default_folder());
  parallel_for(static_cast<std::int64_t>(rows.size()), 0, [&](std::int64_t i, int) {
    CompiledKey& row = rows[static_cast<std::size_t>(i)];
    row.kernel = cuda::compile_kernel(row.key, arguments.arch, cache);
  });
  if (arguments.json) {
    nlohmann::json json{{"arch", arguments.arch},
                        {"nvrtc", nvrtc->version()},
                        {"library", nvrtc->path()},
                        {"cache", cache.folder()},
                        {"kernels", nlohmann::json::array()}};
    for (const CompiledKey& row : rows) json["kernels"].push_back(facts(row));
    fmt::print("{}\n", json.dump(2));
  } else {
    fmt::print("NVRTC {} ({})\n", nvrtc->version(), nvrtc->path());
    print_table(rows, arguments.arch, cache.folder());
  }
  const bool all =
      std::all_of(rows.begin(), rows.end(), [](const CompiledKey& row) { return row.kernel.has_value(); });
  return all ? exit_ok : exit_error;
}

}  // namespace

void add_kernels_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<KernelsArguments>();
  CLI::App* command = app.add_subcommand("kernels", "Compile the GPU kernels that a configuration needs");
  command->add_option("file", arguments->file, "The configuration, in YAML, with a model section")
      ->required();
  command->add_option("overrides", arguments->overrides, "key=value, in the place of what the file says");
  command->add_option("--arch", arguments->arch, "What to compile for")->capture_default_str();
  command->add_flag("--list", arguments->list, "Only list them");
  command->add_flag("--source", arguments->source,
                    "Only print what would be compiled: each kernel's constants, and the programs");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &action] { action = [arguments] { return run_kernels(*arguments); }; });
}

}  // namespace chorale::app
