// Memory right before or right behind a page that no process may touch: one element too far faults, where
// memory around it would have hidden that.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace chorale {

enum class Side { begin, end };  // of the memory, that the forbidden page touches

// `bytes` between two forbidden pages.
class GuardedMemory {
 public:
  GuardedMemory(std::size_t bytes, Side side) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t inside = (bytes + page - 1) / page * page;
    bytes_ = inside + 2 * page;
    memory_ = static_cast<std::byte*>(
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    ::mprotect(memory_, page, PROT_NONE);
    ::mprotect(memory_ + page + inside, page, PROT_NONE);
    data_ = memory_ + page + (side == Side::end ? inside - bytes : 0);
  }
  GuardedMemory(GuardedMemory&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), data_(other.data_), bytes_(other.bytes_) {}
  ~GuardedMemory() {
    if (memory_ != nullptr) ::munmap(memory_, bytes_);
  }
  std::byte* data() const { return data_; }

 private:
  std::byte *memory_ = nullptr, *data_ = nullptr;
  std::size_t bytes_ = 0;
};

// An array in such memory.
template <class T>
class Guarded {
 public:
  Guarded(std::size_t count, Side side) : memory_(count * sizeof(T), side), count_(count) {}
  Guarded(std::span<const T> values, Side side) : Guarded(values.size(), side) {
    if (count_ > 0) std::memcpy(memory_.data(), values.data(), values.size_bytes());
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  std::span<T> span() const { return {data(), count_}; }

 private:
  GuardedMemory memory_;
  std::size_t count_;
};

// While it lives a fault ends the process with the words in `guarded_work`: what was computed.
inline std::string guarded_work;
class FaultsAreTold {
 public:
  FaultsAreTold() : before_(::signal(SIGSEGV, &tell_and_die)) {}
  ~FaultsAreTold() { ::signal(SIGSEGV, before_); }
  FaultsAreTold(const FaultsAreTold&) = delete;
  FaultsAreTold& operator=(const FaultsAreTold&) = delete;

 private:
  static void tell_and_die(int) {
    constexpr std::string_view words = "touched memory outside a tensor: ";
    (void)!::write(STDERR_FILENO, words.data(), words.size());
    (void)!::write(STDERR_FILENO, guarded_work.data(), guarded_work.size());
    (void)!::write(STDERR_FILENO, "\n", 1);
    ::_exit(1);
  }
  void (*before_)(int);
};

}  // namespace chorale
