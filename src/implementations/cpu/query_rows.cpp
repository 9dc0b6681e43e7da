#include "implementations/cpu/query_rows.h"

#include <algorithm>

#include "implementations/cpu/key_rows.h"

namespace chorale::tiled {
namespace {

template <class Element>
void load(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, Element* out,
          std::int64_t out_row) {
  const auto bytes = static_cast<std::int64_t>(size_of(tensor.dtype));
  for (std::int64_t r = 0; r < plan.rows(block); ++r) {
    const std::int64_t offset =
        plan.query(block, r) * tensor.stride[0] + plan.head(block, r) * tensor.stride[1];
    load_row(static_cast<const std::byte*>(tensor.data) + offset * bytes, tensor.dtype, tensor.stride[2],
             tensor.shape[2], out + r * out_row);
  }
}

}  // namespace

void load_block(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, float* out,
                std::int64_t out_row) {
  load(plan, block, tensor, out, out_row);
}
void load_block(const TiledPlan& plan, const QueryBlock& block, const TensorView& tensor, bfloat16* out,
                std::int64_t out_row) {
  load(plan, block, tensor, out, out_row);
}

std::int64_t locate_rows(const TiledPlan& plan, const TensorView& tensor, int sequence, int kv_head,
                         std::int64_t first, std::int64_t most, const bfloat16** rows, bfloat16* scratch) {
  const std::int64_t count = std::min(most, plan.sequence_rows(sequence) - first), dim = tensor.shape[2];
  for (std::int64_t r = 0; r < count; ++r) {
    rows[r] = static_cast<const bfloat16*>(tensor.data) +
              plan.query_of_row(sequence, first + r) * tensor.stride[0] +
              plan.head_of_row(kv_head, first + r) * tensor.stride[1];
    if (tensor.stride[2] == 1) continue;
    load_row(reinterpret_cast<const std::byte*>(rows[r]), tensor.dtype, tensor.stride[2], dim,
             scratch + r * dim);
    rows[r] = scratch + r * dim;
  }
  return count;
}

}  // namespace chorale::tiled
