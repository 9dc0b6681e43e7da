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
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(to_float(back))) << bits;
    else
      EXPECT_EQ(back.bits, bits);
  }
}

TEST(Float, EveryBfloat16SurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const bfloat16 x{static_cast<std::uint16_t>(bits)};
    const float value = to_float(x);
    const bfloat16 back = from_float<bfloat16>(value);
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(to_float(back))) << bits;
    else
      EXPECT_EQ(back.bits, bits);
  }
}

// Every code's value from its definition: sign, four bits of exponent with bias 7, three of mantissa.
TEST(Float, EveryFloat8CodeHasItsValue) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = to_float(float8_e4m3{static_cast<std::uint8_t>(bits)});
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                          : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    EXPECT_EQ(std::signbit(value), bits >= 128) << bits;
    if ((bits & 127) == 127)
      EXPECT_TRUE(std::isnan(value)) << bits;
    else
      EXPECT_EQ(std::abs(value), magnitude) << bits;
    EXPECT_EQ(from_float<float8_e4m3>(value).bits, bits) << "back again";
  }
  EXPECT_EQ(to_float(float8_e4m3{0x7e}), 448.0f);
}

TEST(Float, Float8RoundsToNearestEvenAndSaturates) {
  // Between each code and the next: just below the middle, the middle, just above it.
  for (int bits = 0; bits < 126; ++bits) {
    const auto value = [](int code) { return to_float(float8_e4m3{static_cast<std::uint8_t>(code)}); };
    const float middle = (value(bits) + value(bits + 1)) / 2;  // exact
    for (const float sign : {1.0f, -1.0f}) {
      const int base = sign < 0 ? 128 : 0;
      EXPECT_EQ(from_float<float8_e4m3>(sign * std::nextafter(middle, 0.0f)).bits, base + bits);
      EXPECT_EQ(from_float<float8_e4m3>(sign * middle).bits, base + bits + (bits & 1));
      EXPECT_EQ(from_float<float8_e4m3>(sign * std::nextafter(middle, 1e9f)).bits, base + bits + 1);
    }
  }
  for (const float beyond : {449.0f, 464.0f, 465.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(from_float<float8_e4m3>(beyond).bits, 0x7e) << beyond;
    EXPECT_EQ(from_float<float8_e4m3>(-beyond).bits, 0xfe) << beyond;
  }
  EXPECT_EQ(from_float<float8_e4m3>(std::numeric_limits<float>::quiet_NaN()).bits & 0x7f, 0x7f);
  EXPECT_EQ(from_float<float8_e4m3>(-0.0f).bits, 0x80);
}

// The 16-bit value nearest to x among all finite ones, ties to the even one, found by search.
template <class T>
void expect_nearest(float x) {
  const float rounded = to_float(from_float<T>(x));
  const auto bits = from_float<T>(x).bits;
  const float below = to_float(T{static_cast<std::uint16_t>(bits - 1)}),
              above = to_float(T{static_cast<std::uint16_t>(bits + 1)});
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
  EXPECT_EQ(from_float<bfloat16>(1.0f + 0x1p-8f).bits, 0x3f80);  // a tie, to even
  EXPECT_EQ(from_float<bfloat16>(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);
  EXPECT_EQ(from_float<float16>(65519.0f).bits, 0x7bff);
  EXPECT_EQ(from_float<float16>(65520.0f).bits, 0x7c00);  // rounds to infinity
  EXPECT_EQ(from_float<float16>(0x1p-25f).bits, 0);       // a tie, to even
  EXPECT_EQ(from_float<float16>(0x1.8p-25f).bits, 1);
}

}  // namespace
}  // namespace chorale
