// What every communicator and every placement needs to know about a piece of a tensor.
#pragma once

#include <string_view>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// ok if the view is sound and `dimension` is one of its own. `what` starts the sentence otherwise.
Status check_shard(std::string_view what, const TensorView& view, int dimension);

// The view's elements in memory of their own, without gaps.
Tensor contiguous_copy(const TensorView& view);

}  // namespace chorale
