// The device sources of kernels/, which are part of the library.
#pragma once

#include <span>
#include <string_view>

namespace chorale::cuda {

struct KernelFile {
  std::string_view name;  // "forward.cu"
  std::string_view text;
};
std::span<const KernelFile> kernel_files();

}  // namespace chorale::cuda
