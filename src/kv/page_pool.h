// PagePool: which pages are in use, and by how many sequences. It knows nothing of what pages hold.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

namespace chorale {

// A page is used (it has references) or free. A free page may be kept: somebody may come back for its
// content, so it is handed out only when no other is left, and of the kept ones the one that was released
// first.
class PagePool {
 public:
  explicit PagePool(std::int64_t pages) : pages_(pages) {}

  std::int64_t free_pages() const { return pages_ - used_; }
  std::int64_t used_pages() const { return used_; }
  std::int64_t kept_pages() const { return static_cast<std::int64_t>(kept_.size()); }
  int references(std::int32_t page) const {
    return page >= 0 && page < fresh() ? references_[static_cast<std::size_t>(page)] : 0;
  }

  // A page with one reference. The caller has seen to it that free_pages() > 0.
  std::int32_t allocate() {
    const std::int32_t page = take_free();
    count(page) = 1;
    ++used_;
    return page;
  }
  // One reference more for a page that is used or kept.
  void share(std::int32_t page) {
    if (count(page)++ > 0) return;
    remove_kept(page);
    ++used_;
  }
  void release(std::int32_t page, bool keep) {
    if (--count(page) > 0) return;
    --used_;
    if (keep)
      place_[page] = kept_.insert(kept_.end(), page);
    else
      returned_.push_back(page);
  }
  // Nobody will come back for a kept page.
  void discard(std::int32_t page) {
    remove_kept(page);
    returned_.push_back(page);
  }

 private:
  // Pages from fresh() on were never handed out, so a large pool costs nothing until it is used.
  std::int64_t fresh() const { return static_cast<std::int64_t>(references_.size()); }
  std::int32_t& count(std::int32_t page) { return references_[static_cast<std::size_t>(page)]; }

  std::int32_t take_free() {
    if (!returned_.empty()) {
      const std::int32_t page = returned_.back();
      returned_.pop_back();
      return page;
    }
    if (fresh() < pages_) {
      references_.push_back(0);
      return static_cast<std::int32_t>(fresh() - 1);
    }
    const std::int32_t page = kept_.front();
    remove_kept(page);
    return page;
  }
  void remove_kept(std::int32_t page) {
    const auto found = place_.find(page);
    kept_.erase(found->second);
    place_.erase(found);
  }

  std::int64_t pages_;
  std::int64_t used_ = 0;
  std::vector<std::int32_t> references_;  // of each page that was ever handed out
  std::vector<std::int32_t> returned_;    // free and not kept; the last one returned is the next one used
  std::list<std::int32_t> kept_;          // in the order of their release
  std::unordered_map<std::int32_t, std::list<std::int32_t>::iterator> place_;  // of each page in kept_
};

}  // namespace chorale
