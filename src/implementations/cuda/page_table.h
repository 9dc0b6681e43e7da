// What a plan keeps of a block table: the pages that its sequences use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "chorale/batch.h"

namespace chorale::cuda {

class PageTable {
 public:
  PageTable() = default;
  explicit PageTable(const Batch& batch);

  // Of the used ones; -1 where there are none. Negative ones count as unsigned numbers, so that they are
  // beyond every pool.
  std::int64_t largest() const { return largest_; }
  // Puts them where the batch has them, into room for its whole table. What nobody uses is left as it is
  // there.
  void write(std::byte* to, const Batch& batch) const;

 private:
  std::unique_ptr<std::int32_t[]> pages_;  // as the batch's; those that nobody uses have no value
  std::int64_t largest_ = -1;
};

}  // namespace chorale::cuda
