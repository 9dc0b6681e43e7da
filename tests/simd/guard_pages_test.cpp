// The building blocks on arrays that end where simd.h says, at pages that no process may touch; their results
// are those on arrays with room around.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/float.h"
#include "guarded_memory.h"
#include "simd/dot_tiles.h"
#include "simd/packed_weight.h"
#include "simd/product.h"
#include "simd/simd.h"

namespace chorale {
namespace {

std::vector<float> random_values(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}
std::vector<bfloat16> random_narrow(std::int64_t count, unsigned seed) {
  std::vector<bfloat16> narrow;
  for (const float value : random_values(count, seed)) narrow.push_back(from_float<bfloat16>(value));
  return narrow;
}

class SimdGuardPages : public testing::TestWithParam<Side> {
 protected:
  Side side() const { return GetParam(); }
  Guarded<float> floats(std::int64_t count, unsigned seed) const {
    return {std::span<const float>(random_values(count, seed)), side()};
  }
  Guarded<bfloat16> narrow(std::int64_t count, unsigned seed) const {
    return {std::span<const bfloat16>(random_narrow(count, seed)), side()};
  }

 private:
  const FaultsAreTold told_;
};
INSTANTIATE_TEST_SUITE_P(Sides, SimdGuardPages, testing::Values(Side::begin, Side::end),
                         [](const auto& instance) {
                           return std::string(instance.param == Side::begin ? "Begin" : "End");
                         });

TEST_P(SimdGuardPages, Rows) {
  for (std::int64_t count = 0; count <= 67; ++count) {
    guarded_work = "a row of " + std::to_string(count);
    const Guarded<float> x = floats(count, 1), y = floats(count, 2);
    const std::vector<float> free = random_values(count, 1), other = random_values(count, 2);
    EXPECT_EQ(simd::sum(x.data(), count), simd::sum(free.data(), count));
    EXPECT_EQ(simd::dot(x.data(), y.data(), count), simd::dot(free.data(), other.data(), count));
    EXPECT_EQ(simd::max(x.data(), count), simd::max(free.data(), count));
    EXPECT_EQ(simd::sum_exp(x.data(), count, 0.7f, 1), simd::sum_exp(free.data(), count, 0.7f, 1));
    simd::softmax_gradient(x.data(), count, 0.7f, 1, 3, 2, y.data());
    for (const auto f : {simd::exp, simd::tanh, simd::log, simd::exp2_nonpositive})
      f(x.data(), y.data(), count);
    simd::scale(x.data(), 0.5f, count);
    simd::divide(x.data(), 0.5f, count);
    simd::scale_add(x.data(), 2, y.data(), count);
    simd::softmax_row_backward(x.data(), y.data(), count, 0.3f, 1, 0.2f);
    const float before = -1;
    simd::RowSoftmax row;
    simd::softmax_rows(x.data(), count, 1, count, &before, 0.5f, &row);
    const Guarded<bfloat16> p(static_cast<std::size_t>(simd::round_up(count, 32)), side());
    simd::softmax_rows(y.data(), count, 1, count, &before, 0.5f, &row, p.data(), 0);
  }
}

TEST_P(SimdGuardPages, Conversions) {
  for (std::int64_t count = 0; count <= 67; ++count)
    for (const DType type : {DType::float32, DType::bfloat16, DType::float16, DType::float8_e4m3}) {
      guarded_work = "conversions of " + std::to_string(count);
      const Guarded<float> x = floats(count, 3), back(static_cast<std::size_t>(count), side());
      const Guarded<std::byte> codes(static_cast<std::size_t>(count) * size_of(type), side());
      simd::from_float(x.data(), type, codes.data(), count);
      simd::to_float(codes.data(), type, back.data(), count);
      const Guarded<std::uint32_t> pairs(static_cast<std::size_t>(count), side());
      simd::narrow_pairs(x.data(), back.data(), count, pairs.data());
      simd::narrow_pairs(x.data(), nullptr, count, pairs.data());
      if (count > 0) simd::round_rows(x.data(), count, 1, count);
    }
}

TEST_P(SimdGuardPages, Products) {
  for (const std::int64_t rows : {1, 3, 5, 12, 13, 31})
    for (const std::int64_t columns : {1, 16, 17, 48, 80})
      for (const std::int64_t inner : {1, 7, 64})
        for (const bool transposed : {false, true}) {
          guarded_work = "product " + std::to_string(rows) + " x " + std::to_string(columns) + " x " +
                         std::to_string(inner);
          const std::int64_t width = simd::round_up(columns);
          const Guarded<float> a = floats(rows * inner, 4), b = floats(inner * width, 5),
                               out = floats(rows * width, 6);
          std::vector<float> free = random_values(rows * width, 6);
          const auto operand = [&](const float* data) {
            return transposed ? simd::Operand{data, 1, rows} : simd::Operand{data, inner, 1};
          };
          simd::multiply({rows, columns, inner}, operand(a.data()), b.data(), width, out.data(), width, true);
          simd::multiply({rows, columns, inner}, operand(random_values(rows * inner, 4).data()),
                         random_values(inner * width, 5).data(), width, free.data(), width, true);
          EXPECT_EQ(std::memcmp(out.data(), free.data(), free.size() * sizeof(float)), 0) << guarded_work;
          const Guarded<std::uint8_t> visible(static_cast<std::size_t>(rows * inner), side());
          simd::multiply_visible({rows, columns, inner}, operand(a.data()), b.data(), width, visible.data(),
                                 out.data(), width, false);
          const Guarded<float> turned(static_cast<std::size_t>(rows * inner), side());
          simd::transpose(a.data(), inner, rows, inner, turned.data(), rows);
        }
}

TEST_P(SimdGuardPages, PackedWeights) {
  for (const DType type : {DType::float32, DType::bfloat16})
    for (const std::int64_t rows : {1, 3, 17, 40})
      for (const std::int64_t columns : {1, 33, 64})
        for (const std::int64_t inner : {1, 31, 70}) {
          guarded_work = "weight of " + std::to_string(columns) + " x " + std::to_string(inner) + ", " +
                         std::to_string(rows) + " rows";
          const std::int64_t width = simd::round_up(columns);
          const Guarded<float> weight = floats(columns * inner, 7), a = floats(rows * inner, 8),
                               out(static_cast<std::size_t>(rows * width), side());
          simd::PackedWeight packed;
          packed.pack(TensorView::contiguous(weight.data(), DType::float32, {columns, inner}), type, 2);
          const simd::WeightProduct product{&packed, out.data(), width};
          simd::multiply(a.data(), inner, rows, {&product, 1}, type, 2);
          std::vector<float> free(static_cast<std::size_t>(rows * width));
          const simd::WeightProduct again{&packed, free.data(), width};
          simd::multiply(random_values(rows * inner, 8).data(), inner, rows, {&again, 1}, type, 1);
          EXPECT_EQ(std::memcmp(out.data(), free.data(), free.size() * sizeof(float)), 0) << guarded_work;
          const Guarded<float> gradient = floats(rows * columns, 9), sums = floats(columns * inner, 10);
          simd::add_transposed_product({gradient.data(), columns, columns}, {a.data(), inner, inner}, rows,
                                       type, sums.data(), inner, 2);
        }
}

TEST_P(SimdGuardPages, DotTiles) {
  const simd::DotLevel level = simd::dot_level();
  if (level == simd::DotLevel::none) GTEST_SKIP() << "no products of bfloat16 pairs here";
  for (const std::int64_t rows : {16, 48})
    for (const std::int64_t columns : {16, 48, 64})
      for (const std::int64_t inner : {32, 96}) {
        guarded_work =
            "tiles " + std::to_string(rows) + " x " + std::to_string(columns) + " x " + std::to_string(inner);
        const Guarded<bfloat16> left = narrow(rows * inner, 11), right = narrow(inner * columns, 12);
        const Guarded<float> out = floats(rows * columns, 13);
        const simd::DotScope scope(level);
        simd::dot_product(level, {rows, columns, inner}, left.data(), inner, right.data(), 2 * columns,
                          out.data(), columns, true);
      }
  for (const std::int64_t rows : {1, 7, 33})
    for (const std::int64_t columns : {1, 10, 66}) {
      guarded_work = "packing " + std::to_string(rows) + " x " + std::to_string(columns);
      std::vector<Guarded<bfloat16>> in;
      std::vector<const bfloat16*> pointers;
      for (std::int64_t i = 0; i < rows; ++i)
        pointers.push_back(in.emplace_back(narrow(columns, static_cast<unsigned>(i))).data());
      const std::int64_t wide = simd::round_up(columns), tall = simd::round_up(rows);
      const Guarded<bfloat16> pairs(static_cast<std::size_t>(simd::round_up(rows, 32) * wide), side()),
          turned(static_cast<std::size_t>(simd::round_up(columns, 32) * tall), side());
      simd::pack_pairs(pointers.data(), rows, columns, pairs.data(), 2 * wide);
      simd::pack_pairs_transposed(pointers.data(), rows, columns, turned.data(), 2 * tall);
    }
}

}  // namespace
}  // namespace chorale
