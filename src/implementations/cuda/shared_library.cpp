#include "implementations/cuda/shared_library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace chorale::cuda {

Result<SharedLibrary> SharedLibrary::open(const std::string& what, std::span<const std::string> candidates) {
  std::string broken;
  for (const std::string& candidate : candidates) {
    void* handle = ::dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) {
      SharedLibrary library;
      library.path_ = candidate;
      // Never closed: drivers keep threads and exit handlers.
      library.handle_ = std::shared_ptr<void>(handle, [](void*) {});
      return library;
    }
    // A library that is there and does not open has a reason worth reading.
    if (const char* reason = ::dlerror();
        candidate.find('/') != std::string::npos && reason != nullptr && broken.empty())
      broken = reason;
  }
  return Status::unsupported(fmt::format("{} not found: tried {}{}", what, fmt::join(candidates, ", "),
                                         broken.empty() ? "" : " (" + broken + ")"));
}

Status SharedLibrary::find_address(const char* name, void*& address) const {
  address = ::dlsym(handle_.get(), name);
  if (address != nullptr) return Status::ok();
  return Status::unsupported(fmt::format("{} has no {}: a newer version is needed", path_, name));
}

}  // namespace chorale::cuda
