// KernelCache: compiled kernels on disk, shared by all processes of a user.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "chorale/status.h"

namespace chorale::cuda {

struct CompiledKernel {
  std::string cubin;
  std::string log;     // of the compiler
  double seconds = 0;  // it took to compile
  bool from_cache = false;
  std::string cache_note;  // why it was not kept or not found, in a sentence; empty if all is well
};

// A folder of files, one a kernel, named by the hash of the kernel's identity. Whatever happens to the folder
// or to a file in it, get() gives the kernel: a file that does not hold what its checksum says is compiled
// anew, and where nothing can be kept the note says so. A folder that others may write to is not used: a
// cubin in it could be anybody's code.
class KernelCache {
 public:
  using Compile = std::function<Result<CompiledKernel>()>;

  // An empty folder name: nothing is kept.
  explicit KernelCache(std::string folder, std::uint64_t limit_bytes = std::uint64_t{512} << 20);
  // CHORALE_KERNEL_CACHE, else chorale/kernels in XDG_CACHE_HOME or ~/.cache.
  static std::string default_folder();

  // The kernel of this identity; compiles it if it is not there. Processes that want the same one at once
  // wait for the first of them, but no longer than `patience`.
  Result<CompiledKernel> get(std::string_view identity, const Compile& compile) const;

  const std::string& folder() const { return folder_; }
  std::string path(std::string_view identity) const;  // of its file
  double patience_seconds = 120;

 private:
  Status check_folder() const;
  Result<CompiledKernel> read(const std::string& path, std::string_view identity) const;
  Status write(const std::string& path, std::string_view identity, const CompiledKernel& kernel) const;
  void evict(const std::string& keep) const;

  std::string folder_;
  std::uint64_t limit_bytes_;
};

}  // namespace chorale::cuda
