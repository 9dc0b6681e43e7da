#include "trainer/atomic_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace chorale {
namespace {

namespace fs = std::filesystem;

// A rename is on disk once the folder that holds the name is.
Status flush_folder(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool flushed = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (flushed) return Status::ok();
  return Status::io_error(fmt::format("cannot flush folder {}: {}", path.string(), std::strerror(error)));
}

fs::path parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

}  // namespace

Result<AtomicFolder> AtomicFolder::create(const std::string& path) {
  AtomicFolder folder;
  folder.path_ = path;
  const std::string staging = fmt::format("{}{}{}", path, staging_mark, ::getpid());
  std::error_code error;
  fs::remove_all(staging, error);  // left by an earlier process of the same number
  if (!fs::create_directory(staging, error))
    return Status::io_error(
        fmt::format("cannot create folder {}: {}", staging, error ? error.message() : "it exists"));
  folder.staging_ = staging;
  return folder;
}

AtomicFolder::AtomicFolder(AtomicFolder&& other) noexcept
    : path_(std::move(other.path_)), staging_(std::exchange(other.staging_, {})) {}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;  // nothing better to do with a failure here: the next run removes it
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

Status AtomicFolder::commit() {
  std::error_code error;
  CHORALE_RETURN_IF_ERROR(flush_folder(staging_));
  for (const auto& entry : fs::recursive_directory_iterator(staging_, error))
    if (entry.is_directory()) CHORALE_RETURN_IF_ERROR(flush_folder(entry.path()));
  if (!error) fs::rename(staging_, path_, error);
  if (error)
    return Status::io_error(fmt::format("cannot rename {} to {}: {}", staging_, path_, error.message()));
  staging_.clear();
  return flush_folder(parent_of(path_));
}

}  // namespace chorale
