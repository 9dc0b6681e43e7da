// NVRTC: CUDA source to a cubin. It needs no GPU.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "chorale/status.h"
#include "implementations/cuda/kernel_sources.h"

namespace chorale::cuda {

struct Compilation {
  std::string cubin;
  std::string log;  // the compiler's own words
  double seconds = 0;
};

class Nvrtc {
 public:
  // Opens the library once a process: CHORALE_NVRTC, the system's loader, CUDA's folders, Python
  // environments.
  static Result<const Nvrtc*> get();
  std::string version() const;                       // "13.0"
  const std::string& path() const { return path_; }  // of the library

  // Fails with the compiler's log. `headers` are what the source may include.
  Result<Compilation> compile(const std::string& name, const std::string& source,
                              std::span<const KernelFile> headers,
                              std::span<const std::string> options) const;

 private:
  static Result<Nvrtc> open();
  struct Functions;
  const Functions* functions_ = nullptr;
  std::string path_;
  int major_ = 0, minor_ = 0;
};

}  // namespace chorale::cuda
