// The one rule for page sizes.
#pragma once

#include <fmt/format.h>

#include <bit>

#include "chorale/status.h"

namespace chorale {

inline Status check_page_size(int page_size) {
  if (page_size >= 1 && page_size <= 256 && std::has_single_bit(static_cast<unsigned>(page_size)))
    return Status::ok();
  return Status::invalid_argument(
      fmt::format("page_size {}: must be a power of two from 1 to 256", page_size));
}

}  // namespace chorale
