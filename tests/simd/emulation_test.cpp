// The emulated products have the bits of the processor's own, where it has them.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "base/float.h"
#include "emulation/product.h"
#include "simd/dot_tiles.h"

namespace chorale {
namespace {

constexpr std::int64_t rows = 32, columns = 48, inner = 96;

// Numbers of every size, among them subnormal ones, infinities and NaN.
std::vector<bfloat16> any_bits(std::size_t count, std::mt19937& random) {
  std::vector<bfloat16> values(count);
  for (bfloat16& value : values) value = bfloat16{static_cast<std::uint16_t>(random())};
  return values;
}
std::vector<bfloat16> normal(std::size_t count, float size, std::mt19937& random) {
  std::normal_distribution<float> draw(0, size);
  std::vector<bfloat16> values(count);
  for (bfloat16& value : values) value = from_float<bfloat16>(draw(random));
  return values;
}

void expect_same(const std::vector<bfloat16>& left, const std::vector<bfloat16>& right, float sum, bool amx) {
  const simd::DotLevel level = amx ? simd::DotLevel::amx : simd::DotLevel::avx512_bf16;
  std::vector<float> own(rows * columns, sum), emulated = own;
  {
    const simd::DotScope scope(level);
    simd::dot_product(level, {rows, columns, inner}, left.data(), inner, right.data(), 2 * columns,
                      own.data(), columns, true);
  }
  emulated_simd::multiply(amx, rows, columns, inner, left.data(), right.data(), emulated.data());
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (std::isnan(own[i]) && std::isnan(emulated[i])) continue;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(own[i]), std::bit_cast<std::uint32_t>(emulated[i]))
        << "element " << i << ": " << own[i] << " here, emulated " << emulated[i];
  }
}

class EmulatedProducts : public ::testing::TestWithParam<bool> {
  void SetUp() override {
    if (simd::dot_level() < (GetParam() ? simd::DotLevel::amx : simd::DotLevel::avx512_bf16))
      GTEST_SKIP() << "this processor does not have the instruction, or CHORALE_SIMD forbids it";
  }
};
INSTANTIATE_TEST_SUITE_P(Instructions, EmulatedProducts, ::testing::Bool(),
                         [](const auto& amx) { return std::string(amx.param ? "tdpbf16ps" : "vdpbf16ps"); });

TEST_P(EmulatedProducts, HaveTheBitsOfTheProcessors) {
  std::mt19937 random(1);
  constexpr std::size_t left = rows * inner, right = inner * columns;
  for (int round = 0; round < 20; ++round)
    for (const float size : {1.0f, 1e-3f, 1e-19f, 1e-20f, 1e18f})
      for (const float sum : {0.0f, 1.0f, -3e-39f})
        expect_same(normal(left, size, random), normal(right, size, random), sum, GetParam());
  for (int round = 0; round < 100; ++round)
    expect_same(any_bits(left, random), any_bits(right, random), 0, GetParam());
}

}  // namespace
}  // namespace chorale
