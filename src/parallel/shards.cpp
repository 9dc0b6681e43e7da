#include "parallel/shards.h"

#include <fmt/format.h>

#include "kv/rows.h"

namespace chorale {

Status check_shard(std::string_view what, const TensorView& view, int dimension) {
  CHORALE_RETURN_IF_ERROR(check_view(what, view, 1, TensorView::max_rank));
  if (dimension < 0 || dimension >= view.rank)
    return Status::invalid_argument(fmt::format("{}: dimension {} of {}: must be from 0 to {}", what,
                                                dimension, view.describe(), view.rank - 1));
  return Status::ok();
}

Tensor contiguous_copy(const TensorView& view) {
  Tensor copy = Tensor::zeros(view.dtype, std::span(view.shape.data(), static_cast<std::size_t>(view.rank)));
  constexpr int the_whole_is_one_row = 0;
  RowReader(view, the_whole_is_one_row).copy(0, static_cast<std::byte*>(copy.view().data));
  return copy;
}

}  // namespace chorale
