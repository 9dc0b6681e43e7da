#include "base/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

namespace chorale {
namespace {

Status system_error(std::string_view what, const std::string& path) {
  const int error = errno;
  const std::string sentence = fmt::format("{} {}: {}", what, path, std::strerror(error));
  return error == ENOENT ? Status::not_found(sentence) : Status::io_error(sentence);
}

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

// Size of a regular file; folders and devices are refused, since they cannot be read whole.
Result<std::size_t> regular_size(int descriptor, const std::string& path) {
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) return system_error("cannot inspect", path);
  if (!S_ISREG(info.st_mode))
    return Status::io_error(fmt::format("cannot read {}: not a regular file", path));
  return static_cast<std::size_t>(info.st_size);
}

}  // namespace

Result<std::string> read_file(const std::string& path, std::size_t limit) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return system_error("cannot open", path);
  CHORALE_ASSIGN_OR_RETURN(const std::size_t size, regular_size(file.get(), path));
  if (size > limit)
    return Status::invalid_argument(fmt::format("{} has {} bytes: at most {} are read", path, size, limit));
  std::string content(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t count = ::read(file.get(), content.data() + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("cannot read", path);
    if (count == 0) break;  // the file shrank meanwhile
    done += static_cast<std::size_t>(count);
  }
  content.resize(done);
  return content;
}

Status write_file(const std::string& path, std::string_view content) {
  CHORALE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  CHORALE_RETURN_IF_ERROR(file.write(content.data(), content.size()));
  return file.commit();
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  static std::atomic<unsigned> counter{0};
  AtomicFile file;
  file.path_ = path;
  file.temporary_ = fmt::format("{}.tmp.{}.{}", path, ::getpid(), counter.fetch_add(1));
  file.descriptor_ = ::open(file.temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file.descriptor_ < 0) {
    const Status failure = system_error("cannot write", path);
    file.temporary_.clear();
    return failure;
  }
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status AtomicFile::write(const void* data, std::size_t bytes) {
  const auto* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::write(descriptor_, next, bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("cannot write", path_);
    next += count;
    bytes -= static_cast<std::size_t>(count);
  }
  return Status::ok();
}

Status AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) return system_error("cannot write", path_);
  if (::close(std::exchange(descriptor_, -1)) != 0) return system_error("cannot write", path_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    return system_error("cannot rename into place", path_);
  temporary_.clear();
  return Status::ok();
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return system_error("cannot open", path);
  CHORALE_ASSIGN_OR_RETURN(const std::size_t size, regular_size(file.get(), path));
  MappedFile mapped;
  mapped.size_ = size;
  if (size == 0) return mapped;
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) return system_error("cannot map", path);
  mapped.memory_ = std::shared_ptr<const std::byte>(
      static_cast<const std::byte*>(address),
      [size](const std::byte* memory) { ::munmap(const_cast<std::byte*>(memory), size); });
  return mapped;
}

Status make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return Status::io_error(fmt::format("cannot create folder {}: {}", path, error.message()));
  return Status::ok();
}

}  // namespace chorale
