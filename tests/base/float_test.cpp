#include "base/float.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace chorale {
namespace {

TEST(Float, EveryFloat16SurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float16 x{static_cast<std::uint16_t>(bits)};
    const float value = to_float(x);
    const float16 back = from_float<float16>(value);
    if (std::isnan(value)) EXPECT_TRUE(std::isnan(to_float(back))) << bits;
    else EXPECT_EQ(back.bits, bits);
  }
}

TEST(Float, EveryBfloat16SurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const bfloat16 x{static_cast<std::uint16_t>(bits)};
    const float value = to_float(x);
    const bfloat16 back = from_float<bfloat16>(value);
    if (std::isnan(value)) EXPECT_TRUE(std::isnan(to_float(back))) << bits;
    else EXPECT_EQ(back.bits, bits);
  }
}

// The 16-bit value nearest to x among all finite ones, ties to the even one, found by search.
template <class T>
void expect_nearest(float x) {
  const float rounded = to_float(from_float<T>(x));
  const auto bits = from_float<T>(x).bits;
  const float below = to_float(T{static_cast<std::uint16_t>(bits - 1)}), above = to_float(T{static_cast<std::uint16_t>(bits + 1)});
  const double error = std::abs(static_cast<double>(x) - rounded);
  for (const float neighbour : {below, above}) {
    if (!std::isfinite(neighbour)) continue;
    const double other = std::abs(static_cast<double>(x) - neighbour);
    EXPECT_LE(error, other) << x;
    if (error == other) EXPECT_EQ(bits & 1, 0) << x;
  }
}

TEST(Float, RoundsToNearestEven) {
  for (int i = 0; i < 200000; ++i) {
    const float x = std::ldexp(1.0f + static_cast<float>(i * 7919 % 8388608) / 8388608.0f, i % 28 - 22);
    expect_nearest<float16>(x);
    expect_nearest<bfloat16>(x);
  }
  EXPECT_EQ(from_float<bfloat16>(1.0f + 0x1p-8f).bits, 0x3f80);        // a tie, to even
  EXPECT_EQ(from_float<bfloat16>(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);
  EXPECT_EQ(from_float<float16>(65519.0f).bits, 0x7bff);
  EXPECT_EQ(from_float<float16>(65520.0f).bits, 0x7c00);               // rounds to infinity
  EXPECT_EQ(from_float<float16>(0x1p-25f).bits, 0);                    // a tie, to even
  EXPECT_EQ(from_float<float16>(0x1.8p-25f).bits, 1);
}

}  // namespace
}  // namespace chorale
