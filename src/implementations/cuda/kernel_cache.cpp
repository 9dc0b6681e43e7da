#include "implementations/cuda/kernel_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "base/files.h"
#include "base/settings.h"

namespace chorale::cuda {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view suffix = ".kernel";
constexpr std::size_t largest_file = std::size_t{64} << 20;

// 128 bits of a text, in hexadecimal: two multiplicative hashes of different constants, mixed at the end.
std::string hash(std::string_view text) {
  const auto lane = [&](std::uint64_t state, std::uint64_t factor) {
    for (const char c : text) {
      state = (state ^ static_cast<unsigned char>(c)) * factor;
      state ^= state >> 29;
    }
    state ^= text.size();
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    return state ^ (state >> 31);
  };
  return fmt::format("{:016x}{:016x}", lane(0x243f6a8885a308d3u, 0x9e3779b97f4a7c15u),
                     lane(0x13198a2e03707344u, 0xd6e8feb86659fd93u));
}

// Held while a kernel is compiled, so that one process does it for all. The system lets go of it when its
// process ends, however that ends.
class Lock {
 public:
  Lock(const std::string& path, double patience_seconds) {
    descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (descriptor_ < 0) return;
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::duration<double>(patience_seconds);
    while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK &&
           std::chrono::steady_clock::now() < give_up) {
      waited_ = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  bool waited() const { return waited_; }

 private:
  int descriptor_ = -1;
  bool waited_ = false;
};

}  // namespace

KernelCache::KernelCache(std::string folder, std::uint64_t limit_bytes)
    : folder_(std::move(folder)), limit_bytes_(limit_bytes) {}

std::string KernelCache::default_folder() {
  const Settings settings = read_settings();
  if (settings.kernel_cache) return *settings.kernel_cache == "off" ? "" : *settings.kernel_cache;
  return settings.user_cache ? *settings.user_cache + "/chorale/kernels" : "";
}

std::string KernelCache::path(std::string_view identity) const {
  return fmt::format("{}/{}{}", folder_, hash(identity), suffix);
}

Status KernelCache::check_folder() const {
  if (folder_.empty()) return Status::not_found("kernels are not kept: no cache folder is set");
  // Its last part is made for this user alone.
  if (struct stat info{}; ::stat(folder_.c_str(), &info) != 0) {
    const std::string parent = fs::path(folder_).parent_path().string();
    if (!parent.empty()) CHORALE_RETURN_IF_ERROR(make_folder(parent));
    if (::mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST)
      return Status::io_error(fmt::format("cannot create folder {}: {}", folder_, std::strerror(errno)));
  }
  struct stat info {};
  if (::stat(folder_.c_str(), &info) != 0)
    return Status::io_error(fmt::format("cannot use folder {}: {}", folder_, std::strerror(errno)));
  if (!S_ISDIR(info.st_mode)) return Status::io_error(fmt::format("{} is not a folder", folder_));
  if (info.st_uid != ::geteuid())
    return Status::unsupported(fmt::format(
        "folder {} belongs to another user ({}): it could hold anybody's code", folder_, info.st_uid));
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return Status::unsupported(
        fmt::format("folder {} may be written by others (mode {:o}): it could hold anybody's "
                    "code; chmod go-w makes it usable",
                    folder_, info.st_mode & 07777));
  return Status::ok();
}

Result<CompiledKernel> KernelCache::get(std::string_view identity, const Compile& compile) const {
  const auto compile_unkept = [&](const std::string& note) -> Result<CompiledKernel> {
    CHORALE_ASSIGN_OR_RETURN(CompiledKernel kernel, compile());
    kernel.cache_note = note;
    return kernel;
  };
  if (const Status usable = check_folder(); !usable.is_ok()) return compile_unkept(usable.message());

  const std::string file = path(identity);
  auto found = read(file, identity);
  if (found) return found;
  const Lock lock(file + ".lock", patience_seconds);
  if (lock.waited()) {
    found = read(file, identity);
    if (found) return found;
  }
  const std::string damage = found.status().code() == Code::corrupt_data ? found.status().message() : "";
  CHORALE_ASSIGN_OR_RETURN(CompiledKernel kernel, compile_unkept(damage));
  if (const Status kept = write(file, identity, kernel); !kept.is_ok())
    kernel.cache_note = kept.message();
  else
    evict(file);
  return kernel;
}

// A file: one line of words, the whole identity, the log, the cubin.
//     chorale-kernel 1 IDENTITY_BYTES LOG_BYTES CUBIN_BYTES SECONDS HASH_OF_ALL_THREE
Result<CompiledKernel> KernelCache::read(const std::string& path, std::string_view identity) const {
  CHORALE_ASSIGN_OR_RETURN(const std::string file, read_file(path, largest_file));
  const auto damaged = [&](std::string_view how) {
    return Status::corrupt_data(fmt::format("{} {}: it was compiled anew", path, how));
  };
  const std::size_t line = file.find('\n');
  if (line == std::string::npos) return damaged(file.empty() ? "is empty" : "has no heading");
  std::size_t identity_bytes = 0, log_bytes = 0, cubin_bytes = 0;
  CompiledKernel kernel;
  char checksum[33] = {};
  if (std::sscanf(file.substr(0, line).c_str(), "chorale-kernel 1 %zu %zu %zu %lf %32s", &identity_bytes,
                  &log_bytes, &cubin_bytes, &kernel.seconds, checksum) != 5)
    return damaged("has a heading of another kind");
  const std::string_view content = std::string_view(file).substr(line + 1);
  if (identity_bytes > content.size() || log_bytes > content.size() - identity_bytes ||
      cubin_bytes != content.size() - identity_bytes - log_bytes)
    return damaged("is cut short");
  if (hash(content) != checksum) return damaged("does not have its checksum");
  if (content.substr(0, identity_bytes) != identity) return damaged("is another kernel of the same hash");
  kernel.log = content.substr(identity_bytes, log_bytes);
  kernel.cubin = content.substr(identity_bytes + log_bytes);
  kernel.from_cache = true;
  (void)::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // used now; a read-only file system need not know
  return kernel;
}

Status KernelCache::write(const std::string& path, std::string_view identity,
                          const CompiledKernel& kernel) const {
  std::string content(identity);
  content += kernel.log;
  content += kernel.cubin;
  return write_file(path,
                    fmt::format("chorale-kernel 1 {} {} {} {:.3f} {}\n{}", identity.size(), kernel.log.size(),
                                kernel.cubin.size(), kernel.seconds, hash(content), content));
}

// What was used last stays. Other processes may do the same at the same time: a file that is gone is gone.
void KernelCache::evict(const std::string& keep) const {
  struct Entry {
    fs::file_time_type used;
    std::uint64_t bytes;
    fs::path path;
  };
  std::vector<Entry> entries;
  std::uint64_t total = 0;
  std::error_code error;
  for (fs::directory_iterator i(folder_, error), end; !error && i != end; i.increment(error)) {
    if (i->path().extension() != suffix) continue;
    std::error_code gone;
    const Entry entry{i->last_write_time(gone), i->file_size(gone), i->path()};
    if (gone) continue;
    total += entry.bytes;
    entries.push_back(entry);
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& x, const Entry& y) { return x.used < y.used; });
  for (const Entry& entry : entries) {
    if (total <= limit_bytes_) return;
    if (entry.path == keep) continue;
    std::error_code gone;
    fs::remove(entry.path, gone);
    fs::remove(entry.path.string() + ".lock", gone);
    total -= entry.bytes;
  }
}

}  // namespace chorale::cuda
