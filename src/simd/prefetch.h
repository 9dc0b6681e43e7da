// Memory to ask for while computing, some lines at each step, so that memory and arithmetic go on together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace chorale::simd {

class Prefetch {
 public:
  void clear() { ranges_.clear(), range_ = 0, at_ = end_ = nullptr, bytes_ = 0, lines_ = 0; }
  // Ranges that follow each other become one.
  void add(const void* start, std::int64_t bytes) {
    const auto* first = static_cast<const std::byte*>(start);
    const std::byte* end = first + bytes;
    first -= reinterpret_cast<std::uintptr_t>(first) % line;
    bytes_ += end - first;
    if (!ranges_.empty() && ranges_.back().first < first && first <= ranges_.back().end)
      ranges_.back().end = end;
    else
      ranges_.push_back({first, end});
  }
  // What was added is asked for in `steps` steps.
  void spread(std::int64_t steps) { lines_ = bytes_ / line / steps + 1; }
  void step() { ask(lines_); }
  void ask_rest() { ask(bytes_); }
  void ask(std::int64_t lines) {
    while (lines > 0) {
      if (at_ >= end_) {
        if (range_ == ranges_.size()) return;
        at_ = ranges_[range_].first, end_ = ranges_[range_++].end;
      }
      const std::int64_t run = std::min(lines, (end_ - at_ + line - 1) / line);
      for (std::int64_t i = 0; i < run; ++i, at_ += line) __builtin_prefetch(at_, 0, 2);
      lines -= run;
    }
  }
  bool is_done() const { return at_ >= end_ && range_ == ranges_.size(); }

 private:
  static constexpr std::int64_t line = 64;
  struct Range {
    const std::byte *first, *end;
  };
  std::vector<Range> ranges_;
  std::size_t range_ = 0;
  const std::byte *at_ = nullptr, *end_ = nullptr;
  std::int64_t bytes_ = 0, lines_ = 0;
};

}  // namespace chorale::simd
