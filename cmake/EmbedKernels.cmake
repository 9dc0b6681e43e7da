# cmake -DFOLDER=kernels -DOUTPUT=... -P EmbedKernels.cmake: the device sources as C++ string literals.
cmake_minimum_required(VERSION 3.25)
file(GLOB sources ${FOLDER}/*.cu ${FOLDER}/*.cuh ${FOLDER}/*.h)
list(SORT sources)
set(entries "")
foreach(source IN LISTS sources)
  get_filename_component(name ${source} NAME)
  file(READ ${source} text HEX)
  string(REGEX REPLACE "(..)" "\\\\x\\1" text "${text}")
  # Literals may not be too long for a compiler, and adjacent ones are one.
  string(REGEX REPLACE "(................................................................................................................................)" "\\1\"\n\"" text "${text}")
  file(SIZE ${source} size)
  string(APPEND entries "    {\"${name}\", std::string_view(\"${text}\", ${size})},\n")
endforeach()
file(WRITE ${OUTPUT} "// Made from kernels/ by cmake/EmbedKernels.cmake.
#include \"implementations/cuda/kernel_sources.h\"

namespace chorale::cuda {

std::span<const KernelFile> kernel_files() {
  static constexpr KernelFile files[] = {
${entries}  };
  return files;
}

}  // namespace chorale::cuda
")
