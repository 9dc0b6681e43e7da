// What a plan takes of a block table: the pages that its sequences use.
#pragma once

#include <cstdint>

#include "chorale/batch.h"

namespace chorale::cuda {

// Puts them where the batch has them, into room for its whole table; what nobody uses is left as it is there.
// Returns the largest, or -1 where there are none. Negative ones count as unsigned numbers, so that they are
// beyond every pool.
std::int64_t copy_pages(const Batch& batch, std::int32_t* to);

}  // namespace chorale::cuda
