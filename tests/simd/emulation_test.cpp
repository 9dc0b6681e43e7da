// The emulated instructions have the bits of the processor's own, where it has them.
#include <gtest/gtest.h>

// As in amx_kernels.cpp.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "base/float.h"
#include "emulation/exponential-inl.h"
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

// Powers from -160 to 130 and around every integer, and what is no number.
std::vector<float> exponents() {
  std::vector<float> x;
  for (int i = -160; i <= 130; ++i)
    for (const float part : {0.0f, 1e-7f, 0.1f, 0.25f, 0.4999999f, 0.5f, 0.7f, 0.9999999f})
      x.push_back(static_cast<float>(i) + part);
  for (const float tiny : {1e-30f, 1e-40f, 0.0f}) x.insert(x.end(), {tiny, -tiny});
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  x.insert(x.end(), {infinity, -infinity, 3e38f, -3e38f, nan, std::bit_cast<float>(0xffffffffu)});
  while (x.size() % 16 != 0) x.push_back(0);
  return x;
}
struct Powers {
  std::vector<float> power;
  std::vector<bfloat16> rounded;
};
Powers all(void (*exponential)(const float*, float*, bfloat16*)) {
  const std::vector<float> x = exponents();
  Powers out{std::vector<float>(x.size()), std::vector<bfloat16>(2 * x.size())};
  for (std::size_t i = 0; i < x.size(); i += 16)
    exponential(x.data() + i, out.power.data() + i, out.rounded.data() + 2 * i);
  return out;
}

TEST(EmulatedExponentials, ArePowersOfTwo) {
  const std::vector<float> x = exponents();
  const Powers powers = all(emulated_simd::exponential);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float power = powers.power[i];
    const double exact = std::exp2(double{x[i]});
    if (std::isnan(x[i]))
      EXPECT_TRUE(std::isnan(power));
    else if (x[i] < -126)
      EXPECT_EQ(power, 0) << x[i];
    else if (exact > 3.4e38)
      EXPECT_TRUE(std::isinf(power)) << x[i];
    else
      EXPECT_NEAR(power / exact, 1, 3.2e-6) << x[i];
    if (x[i] == 0) EXPECT_EQ(power, 1);
    for (const bfloat16 rounded : {powers.rounded[2 * i], powers.rounded[2 * i + 1]})
      if (std::isfinite(power)) EXPECT_LE(std::abs(to_float(rounded) - power), power / 256) << x[i];
  }
}

TEST(EmulatedExponentials, HaveTheBitsOfAXeon) {
  const std::vector<float> x = exponents();
  const Powers powers = all(emulated_simd::exponential);
  std::uint64_t hash = 0xcbf29ce484222325;
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!std::isnan(x[i])) hash = (hash ^ std::bit_cast<std::uint32_t>(powers.power[i])) * 0x100000001b3;
  EXPECT_EQ(hash, 0x146c7602b9a9e535);  // what family 6, model 207 gave on 2026-11-28
}

TEST(EmulatedExponentials, HaveTheBitsOfTheProcessors) {
  if (simd::dot_level() < simd::DotLevel::amx)
    GTEST_SKIP() << "this processor does not have AMX, or CHORALE_SIMD forbids it";
  const std::vector<float> x = exponents();
  const Powers own = all(tiled::amx::exponential), emulated = all(emulated_simd::exponential);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) continue;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(own.power[i]), std::bit_cast<std::uint32_t>(emulated.power[i]))
        << x[i];
    for (std::size_t j = 2 * i; j < 2 * i + 2; ++j) EXPECT_EQ(own.rounded[j].bits, emulated.rounded[j].bits);
  }
}

}  // namespace
}  // namespace chorale
