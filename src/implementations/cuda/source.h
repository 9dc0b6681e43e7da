// One translation unit for a kernel: its constants, the programs, and the sources of kernels/.
#pragma once

#include <string>
#include <vector>

#include "implementations/cuda/kernel_key.h"

namespace chorale::cuda {

std::string kernel_source(const KernelKey& key);
// For a target such as "sm_90a".
std::vector<std::string> compiler_options(const std::string& arch);
// All that decides what comes out of the compiler: the source with every file that it may include, the
// options, the compiler's version and the library's. Two kernels are the same exactly if their identities
// are.
std::string kernel_identity(const KernelKey& key, const std::string& arch,
                            const std::string& compiler_version);

}  // namespace chorale::cuda
