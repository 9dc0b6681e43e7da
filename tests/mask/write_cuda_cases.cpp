// write_cuda_cases FOLDER: the emitted source of every case, and a table of the functions.
#include <fmt/format.h>

#include "base/files.h"
#include "mask/cuda_cases.h"
#include "mask/emit_cuda.h"

namespace chorale {
namespace {

Status write_cases(const std::string& folder) {
  std::string includes, entries;
  for (const testing::CudaCase& entry : testing::cuda_cases()) {
    const std::string file = entry.name + ".cuh";
    // The case's name first: "once" means once for all files of the same content.
    CHORALE_RETURN_IF_ERROR(write_file(
        folder + "/" + file,
        fmt::format("// {}\n{}", entry.name, emit_cuda(entry.mask.program(), entry.score.program()))));
    for (const char* function : {"visible", "score", "coverage"})
      includes += fmt::format("#define program_{0} {0}_{1}\n", function, entry.name);
    includes += fmt::format("#include \"{}\"\n", file);
    for (const char* function : {"visible", "score", "coverage"})
      includes += fmt::format("#undef program_{}\n", function);
    entries += fmt::format("    {{visible_{0}, score_{0}, coverage_{0}}},\n", entry.name);
  }
  return write_file(
      folder + "/cuda_cases.cpp",
      fmt::format("#include \"approximate.cuh\"\n{}\n#include \"mask/cuda_functions.h\"\nnamespace "
                  "chorale::testing {{\nusing namespace kernels;\nconst CudaFunctions cuda_functions[] = "
                  "{{\n{}}};\n}}\n",
                  includes, entries));
}

}  // namespace
}  // namespace chorale

int main(int, char** argv) {
  const chorale::Status status = chorale::write_cases(argv[1]);
  if (!status.is_ok()) fmt::print(stderr, "write_cuda_cases: {}\n", status.message());
  return status.is_ok() ? 0 : 1;
}
