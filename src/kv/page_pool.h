// PagePool: which pages are in use, and by how many sequences. It knows nothing of what pages hold.
#pragma once

#include <cstdint>
#include <vector>

namespace chorale {

class PagePool {
 public:
  explicit PagePool(std::int64_t pages) : pages_(pages) {}

  std::int64_t free_pages() const { return pages_ - used_; }
  std::int64_t used_pages() const { return used_; }
  int references(std::int32_t page) const {
    return page >= 0 && page < fresh() ? references_[static_cast<std::size_t>(page)] : 0;
  }

  // A page with one reference. The caller has seen to it that free_pages() > 0.
  std::int32_t allocate() {
    ++used_;
    if (returned_.empty()) {
      references_.push_back(1);
      return static_cast<std::int32_t>(fresh() - 1);
    }
    const std::int32_t page = returned_.back();
    returned_.pop_back();
    count(page) = 1;
    return page;
  }
  void share(std::int32_t page) { ++count(page); }
  void release(std::int32_t page) {
    if (--count(page) > 0) return;
    returned_.push_back(page);
    --used_;
  }

 private:
  // Pages from fresh() on were never handed out, so a large pool costs nothing until it is used.
  std::int64_t fresh() const { return static_cast<std::int64_t>(references_.size()); }
  std::int32_t& count(std::int32_t page) { return references_[static_cast<std::size_t>(page)]; }

  std::int64_t pages_;
  std::int64_t used_ = 0;
  std::vector<std::int32_t> references_;  // of each page that was ever handed out
  std::vector<std::int32_t>
      returned_;  // free pages below fresh(); the last one returned is the next one used
};

}  // namespace chorale
