#include "rl/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "base/files.h"

namespace chorale {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view prefix = "checkpoint-";

std::vector<fs::path> folders_in(const std::string& path) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error))
    if (entry.is_directory(error)) folders.push_back(entry.path());
  return folders;
}

// "checkpoint-" and digits, oldest first.
std::vector<fs::path> checkpoints_in(const std::string& path) {
  std::vector<fs::path> found;
  for (const fs::path& folder : folders_in(path)) {
    const std::string name = folder.filename();
    const bool numbered =
        name.starts_with(prefix) && name.size() > prefix.size() &&
        std::all_of(name.begin() + prefix.size(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (numbered) found.push_back(folder);
  }
  std::ranges::sort(found, {}, [](const fs::path& checkpoint) {
    const std::string name = checkpoint.filename();
    return std::pair(name.size(), name);  // as numbers, also beyond the padding
  });
  return found;
}

Status remove_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) return Status::io_error(fmt::format("cannot remove {}: {}", folder.string(), error.message()));
  return {};
}

}  // namespace

Result<RunFolder> RunFolder::open(const std::string& path) {
  CHORALE_RETURN_IF_ERROR(make_folder(path));
  RunFolder folder(path);
  const std::string lock = path + "/.lock";
  folder.lock_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (folder.lock_ < 0)
    return Status::io_error(fmt::format("cannot write to output folder {}: {}", path, std::strerror(errno)));
  if (::flock(folder.lock_, LOCK_EX | LOCK_NB) != 0)
    return Status::io_error(fmt::format("output folder {} is in use by another run", path));
  // What a killed run was writing: nobody is writing now.
  for (const fs::path& left : folders_in(path))
    if (left.filename().string().find(AtomicFolder::staging_mark) != std::string::npos)
      CHORALE_RETURN_IF_ERROR(remove_folder(left));
  return folder;
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)), lock_(std::exchange(other.lock_, -1)) {}

RunFolder::~RunFolder() {
  if (lock_ >= 0)
    ::close(lock_);  // gives the lock back; the file stays, so that nobody locks one that is gone
}

std::optional<std::string> RunFolder::checkpoint() const {
  const auto found = checkpoints_in(path_);
  if (found.empty()) return std::nullopt;
  return found.back().string();
}

Result<AtomicFolder> RunFolder::start_checkpoint(std::int64_t steps) const {
  return AtomicFolder::create(fmt::format("{}/{}{:06}", path_, prefix, steps));
}

Status RunFolder::prune_checkpoints(int keep) const {
  const auto found = checkpoints_in(path_);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < found.size(); ++i)
    CHORALE_RETURN_IF_ERROR(remove_folder(found[i]));
  return {};
}

}  // namespace chorale
