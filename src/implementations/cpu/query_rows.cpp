#include "implementations/cpu/query_rows.h"

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

}  // namespace chorale::tiled
