// What a plan's words say of a tile, against the mask evaluated pair by pair.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "implementations/cpu/plan.h"
#include "implementations/cpu/score_tile.h"
#include "mask/program.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

TiledPlan plan_of(const char* mask, int query_heads, int kv_heads, int queries, int keys) {
  Problem problem{.query_heads = query_heads, .kv_heads = kv_heads, .head_dim = 16, .dtype = DType::float32};
  problem.mask = *Mask::parse(mask, {});
  return {"visibility_test", problem, Batch::packed({0, queries}, {0, keys}), Arithmetic::fp32_fma, 2, {}};
}

// Bit k: whether row r of the block sees key first + k.
std::uint64_t bits_of(const TiledPlan& plan, const QueryBlock& block, std::int64_t r, std::int64_t first,
                      std::int64_t count) {
  RowEvaluator evaluator(plan.problem().mask.program());
  std::vector<std::uint8_t> shown(static_cast<std::size_t>(count));
  const Point at{.b = block.sequence,
                 .h = plan.head(block, r),
                 .q = plan.position(block.sequence, block.first + r / plan.problem().group_size()),
                 .k = first};
  evaluator.mask(at, count, shown.data());
  std::uint64_t bits = 0;
  for (std::int64_t k = 0; k < count; ++k) bits |= std::uint64_t{shown[static_cast<std::size_t>(k)]} << k;
  return bits;
}

void check(const TiledPlan& plan, int seed, std::map<Coverage, int>& found) {
  std::mt19937 random(static_cast<unsigned>(seed));
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<unsigned>(n));
  };
  const ScoreTile tile(plan, block_rows, tile_keys);
  for (int i = 0; i < 400; ++i) {
    const QueryBlock& block = plan.blocks()[static_cast<std::size_t>(below(std::ssize(plan.blocks())))];
    const std::int64_t row = below(plan.rows(block)), rows = 1 + below(plan.rows(block) - row);
    const std::int64_t first = below((plan.keys(0) + tile_keys - 1) / tile_keys) * tile_keys;
    const std::int64_t count = std::min(tile_keys, plan.keys(0) - first), step = below(2) == 0 ? 16 : 32;
    std::uint64_t any = 0, all = ~std::uint64_t{0};
    for (std::int64_t r = row; r < row + rows; ++r) {
      const std::uint64_t bits = bits_of(plan, block, r, first, count);
      any |= bits, all &= bits;
    }
    const ScoreTile::Part part = tile.visible_part(block, row, rows, first, count, step);
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", try " << i << ": rows " << row << "+" << rows
                                    << " of block " << block.index << ", keys " << first << "+" << count);
    ++found[part.coverage];
    ASSERT_EQ(part.coverage == Coverage::empty, any == 0);
    if (any == 0) continue;
    const std::int64_t begin = std::countr_zero(any) / step * step;
    const std::int64_t end = std::min(count, simd::round_up(64 - std::countl_zero(any), step));
    ASSERT_EQ(part.first, first + begin);
    ASSERT_EQ(part.count, end - begin);
    bool is_full = true;
    for (std::int64_t k = begin; k < end; ++k) is_full = is_full && (all >> k & 1) != 0;
    ASSERT_EQ(part.coverage == Coverage::full, is_full);
  }
}

TEST(Visibility, APartIsWhatSomeRowSeesAndFullIfAllDo) {
  std::map<Coverage, int> found;
  int seed = 0;
  for (const char* mask : {"causal", "causal and window(100)", "causal and (k < 30 or window(40))",
                           "k % 3 == 0", "causal and k >= h * 40", "q >= 50"})
    for (const auto& [query_heads, kv_heads] : {std::pair(2, 2), std::pair(6, 2), std::pair(8, 1)})
      for (const auto& [queries, keys] : {std::pair(300, 300), std::pair(77, 290), std::pair(64, 64)})
        check(plan_of(mask, query_heads, kv_heads, queries, keys), ++seed, found);
  EXPECT_GT(found[Coverage::empty], 100);
  EXPECT_GT(found[Coverage::partial], 100);
  EXPECT_GT(found[Coverage::full], 100);
}

}  // namespace
}  // namespace chorale::tiled
