// ZeroedMemory: a large block that is zero at birth and takes memory only where it is touched.
#pragma once

#include <cstddef>

#include "chorale/status.h"

namespace chorale {

class ZeroedMemory {
 public:
  // Page-aligned. resource_exhausted, with the number of bytes and the system's reason, if there is none.
  static Result<ZeroedMemory> allocate(std::size_t bytes);
  ZeroedMemory(ZeroedMemory&& other) noexcept;
  ZeroedMemory& operator=(ZeroedMemory&& other) noexcept;
  ~ZeroedMemory();

  std::byte* data() const { return data_; }

 private:
  ZeroedMemory(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace chorale
