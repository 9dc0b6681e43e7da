// AtomicFolder: a folder that exists completely or not at all.
#pragma once

#include <string>
#include <string_view>

#include "chorale/status.h"

namespace chorale {

// Filled aside, then brought under its name by one rename.
class AtomicFolder {
 public:
  // Makes an empty folder beside `path`, whose parent must exist.
  static Result<AtomicFolder> create(const std::string& path);
  AtomicFolder(AtomicFolder&&) noexcept;
  AtomicFolder& operator=(AtomicFolder&&) = delete;
  ~AtomicFolder();  // removes what was not committed

  const std::string& staging() const { return staging_; }  // where to write
  // Flushes the folders to disk and renames; the files must be flushed already, as AtomicFile does. Fails if
  // a folder that is not empty has the name.
  Status commit();

  // In the names of folders that are being filled. Such a folder whose process has ended may be removed.
  static constexpr std::string_view staging_mark = ".staging.";

 private:
  AtomicFolder() = default;
  std::string path_, staging_;
};

}  // namespace chorale
