// Products with packed weights: against chains of std::fma to the bit where they are such chains, against
// float64 where they are products of bfloat16 pairs, and always against themselves.
#include "simd/packed_weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/float.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale {
namespace {

std::vector<float> random_values(std::int64_t count, unsigned seed, DType type = DType::float32) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = normal(random);
    if (type == DType::bfloat16) value = to_float(from_float<bfloat16>(value));
  }
  return values;
}

bool are_chains(DType type) { return type == DType::float32 || simd::dot_level() == simd::DotLevel::none; }

// An element's expected value, and how far from it a product of `inner` steps may be.
struct Expected {
  double sum = 0, magnitude = 0;
  float chain = 0;
  void add(float x, float y) {
    sum += static_cast<double>(x) * y;
    magnitude += std::abs(static_cast<double>(x) * y);
    chain = std::fma(x, y, chain);
  }
  void expect(float actual, DType type) const {
    if (are_chains(type))
      EXPECT_EQ(actual, chain);
    else
      EXPECT_NEAR(actual, sum, 1e-6 * magnitude + 1e-30);
  }
};

class PackedWeight : public ::testing::TestWithParam<DType> {
 protected:
  simd::PackedWeight pack(const std::vector<float>& weight, std::int64_t columns, std::int64_t inner) const {
    simd::PackedWeight packed;
    packed.pack(TensorView::contiguous(weight.data(), DType::float32, {columns, inner}), GetParam(), 2);
    return packed;
  }
  static std::vector<float> multiply(const std::vector<float>& a, std::int64_t rows,
                                     const simd::PackedWeight& weight, int threads,
                                     DType rounding = DType::float32) {
    const std::int64_t width = simd::round_up(weight.columns());
    // A row more, and sums from before: neither may be touched or count.
    std::vector<float> out(static_cast<std::size_t>((rows + 1) * width), 7.0f);
    const simd::WeightProduct product{&weight, out.data(), width};
    simd::multiply(a.data(), weight.inner(), rows, {&product, 1}, rounding, threads);
    for (std::int64_t j = 0; j < width; ++j)
      EXPECT_EQ(out[static_cast<std::size_t>(rows * width + j)], 7.0f) << "beyond the last row";
    out.resize(static_cast<std::size_t>(rows * width));
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(Types, PackedWeight, ::testing::Values(DType::float32, DType::bfloat16),
                         [](const auto& instance) { return std::string(name(instance.param)); });

TEST_P(PackedWeight, MultipliesAndRowsDoNotDependOnHowManyThereAreOrOnThreads) {
  for (const std::int64_t columns : {1, 16, 33, 83})
    for (const std::int64_t inner : {1, 31, 64, 1050}) {
      constexpr std::int64_t rows = 300;
      const auto weight = random_values(columns * inner, 7, GetParam());
      const auto a = random_values(rows * inner, 8, GetParam());
      const simd::PackedWeight packed = pack(weight, columns, inner);
      const std::int64_t width = simd::round_up(columns);
      const std::vector<float> all = multiply(a, rows, packed, 1);
      for (std::int64_t i = 0; i < rows; i += 23)
        for (std::int64_t j = 0; j < columns; ++j) {
          Expected expected;
          for (std::int64_t k = 0; k < inner; ++k)
            expected.add(a[static_cast<std::size_t>(i * inner + k)],
                         weight[static_cast<std::size_t>(j * inner + k)]);
          expected.expect(all[static_cast<std::size_t>(i * width + j)], GetParam());
        }
      for (const std::int64_t count : {1, 2, 3, 5, 6, 13, 16, 17, 33, 95, 257})
        for (const int threads : {1, 3}) {
          const std::vector<float> some = multiply(a, count, packed, threads);
          for (std::int64_t i = 0; i < count; ++i)
            ASSERT_EQ(std::memcmp(&some[static_cast<std::size_t>(i * width)],
                                  &all[static_cast<std::size_t>(i * width)],
                                  static_cast<std::size_t>(columns) * sizeof(float)),
                      0)
                << "row " << i << " of " << count << ", " << columns << " columns, inner " << inner;
        }
    }
}

TEST_P(PackedWeight, RoundsWhatItGives) {
  const auto weight = random_values(50 * 40, 1, GetParam()), a = random_values(5 * 40, 2, GetParam());
  const simd::PackedWeight packed = pack(weight, 50, 40);
  const std::vector<float> exact = multiply(a, 5, packed, 1);
  const std::vector<float> rounded = multiply(a, 5, packed, 2, DType::bfloat16);
  for (std::size_t row = 0; row < 5; ++row)
    for (std::size_t i = row * 64; i < row * 64 + 50; ++i)
      EXPECT_EQ(rounded[i], to_float(from_float<bfloat16>(exact[i])));
}

TEST_P(PackedWeight, SeveralProductsOfTheSameRows) {
  const auto first = random_values(50 * 40, 1, GetParam()), second = random_values(17 * 40, 2, GetParam());
  const auto a = random_values(9 * 40, 3, GetParam());
  const simd::PackedWeight packed[2] = {pack(first, 50, 40), pack(second, 17, 40)};
  std::vector<float> out[2] = {std::vector<float>(9 * 64), std::vector<float>(9 * 32)};
  const simd::WeightProduct products[2] = {{&packed[0], out[0].data(), 64}, {&packed[1], out[1].data(), 32}};
  simd::multiply(a.data(), 40, 9, products, DType::float32, 2);
  EXPECT_EQ(out[0], multiply(a, 9, packed[0], 1));
  EXPECT_EQ(out[1], multiply(a, 9, packed[1], 1));
}

TEST_P(PackedWeight, TransposedIsTheTransposedWeightPacked) {
  for (const std::int64_t columns : {1, 30, 64, 101})
    for (const std::int64_t inner : {1, 20, 96, 67}) {
      const auto weight = random_values(columns * inner, 9, GetParam());
      std::vector<float> other(weight.size());
      for (std::int64_t c = 0; c < columns; ++c)
        for (std::int64_t i = 0; i < inner; ++i)
          other[static_cast<std::size_t>(i * columns + c)] = weight[static_cast<std::size_t>(c * inner + i)];
      simd::PackedWeight transposed;
      transposed.pack_transposed(pack(weight, columns, inner), 2);
      ASSERT_EQ(transposed.columns(), inner);
      ASSERT_EQ(transposed.inner(), columns);
      const auto a = random_values(4 * columns, 10, GetParam());
      EXPECT_EQ(multiply(a, 4, transposed, 1), multiply(a, 4, pack(other, inner, columns), 1))
          << columns << " x " << inner;
    }
}

TEST_P(PackedWeight, TakesStridesAndNewValues) {
  const auto weight = random_values(20 * 30, 11, GetParam()), a = random_values(3 * 20, 12, GetParam());
  const TensorView plain = TensorView::contiguous(weight.data(), DType::float32, {20, 30});
  TensorView strided = plain;  // [30, 20], as if transposed
  std::swap(strided.shape[0], strided.shape[1]);
  std::swap(strided.stride[0], strided.stride[1]);
  simd::PackedWeight packed, twice, transposed;
  packed.pack(strided, GetParam());
  transposed.pack_transposed(pack(weight, 20, 30));
  EXPECT_EQ(multiply(a, 3, packed, 1), multiply(a, 3, transposed, 1));
  twice.pack(TensorView::contiguous(random_values(600, 13).data(), DType::float32, {30, 20}), GetParam());
  twice.pack(strided, GetParam());
  EXPECT_EQ(multiply(a, 3, twice, 1), multiply(a, 3, packed, 1));
}

class TransposedProduct : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, TransposedProduct, ::testing::Values(DType::float32, DType::bfloat16),
                         [](const auto& instance) { return std::string(name(instance.param)); });

TEST_P(TransposedProduct, AddsRowsInOrderOnAnyNumberOfThreads) {
  for (const std::int64_t rows : {1, 31, 64, 257, 600})
    for (const std::int64_t outputs : {1, 50, 150})
      for (const std::int64_t inputs : {16, 21, 300}) {
        const auto a = random_values(rows * outputs, 1, GetParam()),
                   b = random_values(rows * inputs, 2, GetParam());
        const auto before = random_values(outputs * inputs, 3);
        const auto add = [&](std::int64_t count, std::int64_t first, std::vector<float>& sums, int threads) {
          simd::add_transposed_product({a.data() + first * outputs, outputs, outputs},
                                       {b.data() + first * inputs, inputs, inputs}, count, GetParam(),
                                       sums.data(), inputs, threads);
        };
        std::vector<float> sums = before, threaded = before, apart = before;
        add(rows, 0, sums, 1);
        add(rows, 0, threaded, 3);
        EXPECT_EQ(sums, threaded);
        const std::int64_t cut = rows / 2 / 32 * 32;  // whole steps: the same chains
        add(cut, 0, apart, 2);
        add(rows - cut, cut, apart, 2);
        EXPECT_EQ(sums, apart);
        for (std::int64_t i = 0; i < outputs; i += 7)
          for (std::int64_t j = 0; j < inputs; j += 5) {
            Expected expected;
            expected.chain = before[static_cast<std::size_t>(i * inputs + j)];
            expected.sum = expected.chain, expected.magnitude = std::abs(expected.chain);
            for (std::int64_t row = 0; row < rows; ++row)
              expected.add(a[static_cast<std::size_t>(row * outputs + i)],
                           b[static_cast<std::size_t>(row * inputs + j)]);
            expected.expect(sums[static_cast<std::size_t>(i * inputs + j)], GetParam());
          }
      }
}

}  // namespace
}  // namespace chorale
