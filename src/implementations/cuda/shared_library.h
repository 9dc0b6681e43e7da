// SharedLibrary: a library that is opened when it is first needed, so that one program serves machines with
// and without it.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "chorale/status.h"

namespace chorale::cuda {

class SharedLibrary {
 public:
  // The first of these that can be opened: names that the system's loader finds, or paths. `what` names it in
  // the failure, which lists what was tried.
  static Result<SharedLibrary> open(const std::string& what, std::span<const std::string> candidates);

  // Sets `function` to the symbol of this name; unsupported if the library has none.
  template <class Function>
  Status find(const char* name, Function*& function) const {
    void* address = nullptr;
    CHORALE_RETURN_IF_ERROR(find_address(name, address));
    function = reinterpret_cast<Function*>(address);
    return Status::ok();
  }
  const std::string& path() const { return path_; }

 private:
  Status find_address(const char* name, void*& address) const;
  std::string path_;
  std::shared_ptr<void> handle_;
};

}  // namespace chorale::cuda
