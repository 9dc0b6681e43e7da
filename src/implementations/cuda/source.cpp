#include "implementations/cuda/source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "implementations/cuda/kernel_sources.h"

namespace chorale::cuda {
namespace {

// Every include of kernels/ is written so.
bool includes(std::string_view text, std::string_view name) {
  return text.find(fmt::format("#include \"{}\"", name)) != std::string_view::npos;
}

}  // namespace

std::string kernel_source(const KernelKey& key) {
  std::string text = fmt::format("// {}\n", key.describe());
  const auto define = [&](std::string_view constant, int value) {
    text += fmt::format("#define CHORALE_{} {}\n", constant, value);
  };
  define("HEAD_DIM", key.head_dim);
  define("VALUE_DIM", key.value_dim);
  define("GROUP", key.group);
  define("BFLOAT16", key.bfloat16);
  define("FP8_CACHE", key.fp8_cache);
  define("PAGED", key.paged);
  define("PAGE_SIZE", key.page_size);
  define("MASKED", key.masked);
  define("SCORED", key.scored);
  define("SINKS", key.sinks);
  define("TILE", key.tile);
  define("CHUNK", key.chunk);
  define("POSITIONS", key.positions);
  define("CLUSTER", key.cluster);
  text += "#include \"config.cuh\"\n#include \"params.h\"\n";
  if (!key.program.empty()) text += "#include \"program.cuh\"\n";
  text += fmt::format("#include \"{}.cu\"\n", name(key.kind));
  return text;
}

std::vector<KernelFile> kernel_headers(const KernelKey& key) {
  std::vector<KernelFile> missing(kernel_files().begin(), kernel_files().end());
  if (!key.program.empty()) missing.push_back({"program.cuh", key.program});
  std::vector<KernelFile> headers;
  const std::string source = kernel_source(key);
  for (std::size_t next = 0; next <= headers.size(); ++next) {
    const std::string_view text = next == 0 ? std::string_view(source) : headers[next - 1].text;
    const auto rest = std::stable_partition(
        missing.begin(), missing.end(), [&](const KernelFile& file) { return !includes(text, file.name); });
    headers.insert(headers.end(), rest, missing.end());
    missing.erase(rest, missing.end());
  }
  return headers;
}

// Contraction is off: what is fused is written (rule 8 of docs/numerics.md). ptxas reports registers and
// spills.
std::vector<std::string> compiler_options(const std::string& arch) {
  return {"--gpu-architecture=" + arch, "--std=c++17", "--fmad=false", "--generate-line-info",
          "--ptxas-options=-v"};
}

std::string kernel_identity(const KernelKey& key, const std::string& arch,
                            const std::string& compiler_version) {
  std::string text = fmt::format("chorale 0.1.0\nnvrtc {}\n{}\n{}\n", compiler_version,
                                 fmt::join(compiler_options(arch), "\n"), kernel_source(key));
  for (const KernelFile& file : kernel_headers(key))
    text += fmt::format("--- {}\n{}\n", file.name, file.text);
  return text;
}

}  // namespace chorale::cuda
