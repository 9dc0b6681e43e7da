#include "implementations/cuda/source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "implementations/cuda/kernel_sources.h"

namespace chorale::cuda {

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
  text += "#include \"config.cuh\"\n#include \"params.h\"\n";
  if (!key.program.empty()) text += "#include \"program.cuh\"\n";
  text += fmt::format("#include \"{}.cu\"\n", name(key.kind));
  return text;
}

std::vector<KernelFile> kernel_headers(const KernelKey& key) {
  std::vector<KernelFile> headers(kernel_files().begin(), kernel_files().end());
  if (!key.program.empty()) headers.push_back({"program.cuh", key.program});
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
