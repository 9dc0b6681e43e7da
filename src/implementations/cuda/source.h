// What the compiler gets for a kernel: its constants, the programs, and the sources of kernels/.
#pragma once

#include <string>
#include <vector>

#include "implementations/cuda/kernel_key.h"
#include "implementations/cuda/kernel_sources.h"

namespace chorale::cuda {

std::string kernel_source(const KernelKey& key);
// What it includes, and what that includes: files of kernels/, and program.cuh, which is the emitted programs
// and looks into `key`. A change of one kernel leaves the others' compiled code what it is.
std::vector<KernelFile> kernel_headers(const KernelKey& key);
// For a target such as "sm_90a".
std::vector<std::string> compiler_options(const std::string& arch);
// All that decides what comes out of the compiler: the source with every file that it includes, the
// options, the compiler's version and the library's. Two kernels are the same exactly if their identities
// are.
std::string kernel_identity(const KernelKey& key, const std::string& arch,
                            const std::string& compiler_version);

}  // namespace chorale::cuda
