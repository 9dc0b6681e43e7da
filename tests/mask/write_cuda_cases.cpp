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
        fmt::format("{}/{}", folder, file),
        fmt::format("// {}\n{}", entry.name, emit_cuda(entry.mask.program(), entry.score.program()))));
    const char* const names[] = {"program_visible", "program_score", "program_coverage", "program_rows",
                                 "program_keys",    "RowValues",     "KeyValues"};
    for (const char* name : names) includes += fmt::format("#define {0} {0}_{1}\n", name, entry.name);
    includes += fmt::format("#include \"{}\"\n", file);
    for (const char* name : names) includes += fmt::format("#undef {}\n", name);
    entries += fmt::format(
        "    {{[](const TableView* t, int b, int h, int q, int k) {{\n"
        "       return program_visible_{0}(t, b, h, q, k, program_rows_{0}(t, b, h, q), program_keys_{0}(t, "
        "b, k));\n     }},\n"
        "     [](const TableView* t, float score, int b, int h, int q, int k) {{\n"
        "       return program_score_{0}(t, score, 1, b, h, q, k, program_rows_{0}(t, b, h, q), "
        "program_keys_{0}(t, b, k));\n     }},\n"
        "     program_coverage_{0}}},\n",
        entry.name);
  }
  return write_file(
      fmt::format("{}/cuda_cases.cpp", folder),
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
