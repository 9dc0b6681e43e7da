// Files: read whole, written aside and renamed, mapped.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "chorale/status.h"

namespace chorale {

// The whole file; fails with the path and the system's reason. Files over `limit` bytes are refused.
Result<std::string> read_file(const std::string& path, std::size_t limit = std::size_t{1} << 30);

// Writes beside the target, flushes to disk and renames, so that `path` holds either its old content or all
// of the new. The folder must exist.
Status write_file(const std::string& path, std::string_view content);
// The same for content that is produced in pieces: fill(write) calls write(bytes) as often as it likes.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&&) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();  // removes the temporary unless committed
  Status write(const void* data, std::size_t bytes);
  Status commit();  // fsync and rename

 private:
  AtomicFile() = default;
  std::string path_, temporary_;
  int descriptor_ = -1;
};

// A read-only memory map; pages are read from disk when touched.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  std::span<const std::byte> bytes() const { return {memory_.get(), size_}; }

 private:
  std::shared_ptr<const std::byte> memory_;
  std::size_t size_ = 0;
};

Status make_folder(const std::string& path);  // and its parents; ok if it exists

}  // namespace chorale
