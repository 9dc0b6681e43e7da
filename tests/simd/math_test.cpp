// Elementary functions against the C library in float64, and sums against their written order.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/float.h"
#include "simd/simd.h"

namespace chorale {
namespace {

using Function = void (*)(const float*, float*, std::int64_t);

// The largest error over many arguments of [low, high], in units in the last place of the exact result.
double largest_error(Function f, double (*exact)(double), float low, float high) {
  constexpr int count = 400001;
  std::vector<float> x(count), y(count);
  for (int i = 0; i < count; ++i) x[i] = low + (high - low) * static_cast<float>(i) / (count - 1);
  f(x.data(), y.data(), count);
  double largest = 0;
  for (int i = 0; i < count; ++i) {
    const double want = exact(static_cast<double>(x[i]));
    int exponent = 0;
    std::frexp(want, &exponent);
    const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
    largest = std::max(largest, std::abs(y[i] - want) / ulp);
  }
  return largest;
}

TEST(Math, IsAccurate) {
  EXPECT_LT(largest_error(simd::exp2_nonpositive, std::exp2, -125.9f, 0.0f), 1.5);
  EXPECT_LT(largest_error(simd::exp2_nonpositive, std::exp2, -1.0f, 0.0f), 1.5);
  EXPECT_LT(largest_error(simd::exp, std::exp, -87.0f, 88.7f), 1.2);
  EXPECT_LT(largest_error(simd::exp, std::exp, -1.0f, 1.0f), 1.2);
  EXPECT_LT(largest_error(simd::exp, std::exp, -104.0f, -87.4f), 1.1) << "subnormal results";
  EXPECT_LT(largest_error(simd::tanh, std::tanh, -10.0f, 10.0f), 2.0);
  EXPECT_LT(largest_error(simd::tanh, std::tanh, -0.63f, 0.63f), 2.0);
  EXPECT_LT(largest_error(simd::log, std::log, 1e-30f, 1e30f), 1.5);
  EXPECT_LT(largest_error(simd::log, std::log, 0.5f, 2.0f), 2.0);
  EXPECT_LT(largest_error(simd::log, std::log, 1e-44f, 1e-38f), 1.5) << "subnormal arguments";
}

float one(Function f, float x) {
  float y;
  f(&x, &y, 1);
  return y;
}

TEST(Math, HasTheRightEdges) {
  constexpr float infinity = std::numeric_limits<float>::infinity(),
                  nan = std::numeric_limits<float>::quiet_NaN();
  for (int n = -126; n <= 0; ++n)
    EXPECT_EQ(one(simd::exp2_nonpositive, static_cast<float>(n)), std::ldexp(1.0f, n));
  EXPECT_EQ(one(simd::exp2_nonpositive, -126.1f), 0.0f);
  EXPECT_EQ(one(simd::exp2_nonpositive, -infinity), 0.0f);
  EXPECT_EQ(one(simd::exp, 0.0f), 1.0f);
  EXPECT_EQ(one(simd::exp, -infinity), 0.0f);
  EXPECT_EQ(one(simd::exp, infinity), infinity);
  EXPECT_EQ(one(simd::exp, 89.0f), infinity);
  EXPECT_EQ(one(simd::tanh, infinity), 1.0f);
  EXPECT_EQ(one(simd::tanh, -infinity), -1.0f);
  EXPECT_EQ(one(simd::tanh, -0.0f), -0.0f);
  EXPECT_EQ(one(simd::log, 1.0f), 0.0f);
  EXPECT_EQ(one(simd::log, 0.0f), -infinity);
  EXPECT_EQ(one(simd::log, infinity), infinity);
  EXPECT_TRUE(std::isnan(one(simd::log, -1.0f)));
  for (const Function f : {simd::exp2_nonpositive, simd::exp, simd::tanh, simd::log})
    EXPECT_TRUE(std::isnan(one(f, nan)));
}

// An element's bits do not depend on where in the array it stands or how long the array is.
TEST(Math, DoesNotLookAtNeighbours) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> x(67), y(67);
  for (float& value : x) value = normal(random);
  for (const Function f : {simd::exp2_nonpositive, simd::exp, simd::tanh, simd::log}) {
    f(x.data(), y.data(), 67);
    for (std::size_t i = 0; i < x.size(); ++i)
      EXPECT_EQ(std::bit_cast<std::uint32_t>(one(f, x[i])), std::bit_cast<std::uint32_t>(y[i]));
  }
}

// The order that simd.h promises, written as plainly as it can be.
template <class Step>
float folded(std::int64_t count, float start, Step step) {
  float lane[16];
  std::fill(lane, lane + 16, start);
  for (std::int64_t i = 0; i < count; ++i) lane[i % 16] = step(lane[i % 16], i);
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

TEST(Math, SumsInThePromisedOrder) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  int differs_from_plain = 0;
  for (std::int64_t count = 0; count < 200; ++count) {
    std::vector<float> x(static_cast<std::size_t>(count)), y(x.size());
    for (float& value : x) value = normal(random);
    for (float& value : y) value = normal(random);
    EXPECT_EQ(simd::sum(x.data(), count),
              folded(count, 0.0f, [&](float s, std::int64_t i) { return s + x[i]; }));
    EXPECT_EQ(simd::dot(x.data(), y.data(), count),
              folded(count, 0.0f, [&](float s, std::int64_t i) { return std::fma(x[i], y[i], s); }));
    float plain = 0;
    for (const float value : x) plain += value;
    differs_from_plain += plain != simd::sum(x.data(), count);
    EXPECT_EQ(simd::max(x.data(), count),
              count == 0 ? -std::numeric_limits<float>::infinity() : *std::max_element(x.begin(), x.end()));
  }
  EXPECT_GT(differs_from_plain, 100) << "the control: another order gives other bits";
}

// One row of an online softmax against its parts.
TEST(Math, SoftmaxRowIsItsParts) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (std::int64_t count = 1; count <= 128; ++count)
    for (const float before : {-infinity, -2.0f, 100.0f}) {
      std::vector<float> x(static_cast<std::size_t>(count)), expected(x.size());
      for (float& value : x) value = random() % 5 == 0 ? -infinity : normal(random);
      const float maximum = std::max(before, *std::max_element(x.begin(), x.end()));
      for (std::size_t i = 0; i < x.size(); ++i)
        expected[i] = (x[i] - (maximum == -infinity ? 0.0f : maximum)) * 0.7f;
      simd::exp2_nonpositive(expected.data(), expected.data(), count);
      std::vector<bfloat16> rounded(static_cast<std::size_t>(simd::round_up(count, 32)), bfloat16{0x7fc0});
      simd::RowSoftmax narrow, row;
      simd::softmax_rows(x.data(), count, 1, count, &before, 0.7f, &narrow, rounded.data(), 0);
      simd::softmax_rows(x.data(), count, 1, count, &before, 0.7f, &row);
      EXPECT_EQ(row.maximum, maximum);
      EXPECT_EQ(row.sum, simd::sum(expected.data(), count));
      EXPECT_EQ(narrow.maximum, maximum);
      EXPECT_EQ(narrow.sum, row.sum);
      for (std::size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(x[i], expected[i]);
        ASSERT_EQ(rounded[i], from_float<bfloat16>(expected[i]));
      }
      for (std::size_t i = x.size(); i < rounded.size(); ++i) ASSERT_EQ(rounded[i].bits, 0);
    }
  std::vector<float> broken(40, 1.0f);
  broken[17] = std::numeric_limits<float>::quiet_NaN();
  const float before = 0;
  simd::RowSoftmax row;
  simd::softmax_rows(broken.data(), 40, 1, 40, &before, 1.0f, &row);
  EXPECT_TRUE(std::isnan(row.sum));
}

// Rows side by side against the same rows alone.
TEST(Math, SoftmaxOfARowDoesNotSeeItsNeighbours) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0, 3);
  for (std::int64_t rows = 1; rows <= 11; ++rows)
    for (const std::int64_t count : {1, 15, 16, 17, 47, 64}) {
      const std::int64_t width = simd::round_up(count, 32) + 3;
      std::vector<float> x(static_cast<std::size_t>(rows * width)), before(static_cast<std::size_t>(rows));
      for (float& value : x) value = normal(random);
      for (float& value : before) value = normal(random);
      x[static_cast<std::size_t>(rows / 2 * width)] = std::numeric_limits<float>::quiet_NaN();
      std::vector<float> alone = x;
      std::vector<bfloat16> p(x.size(), bfloat16{0x7fc0}), p_alone = p;
      std::vector<simd::RowSoftmax> together(before.size());
      simd::softmax_rows(x.data(), width, rows, count, before.data(), 0.7f, together.data(), p.data(), width);
      simd::softmax_rows(x.data(), width, rows, count, before.data(), 0.7f, together.data());
      const auto bits = [](float value) { return std::bit_cast<std::uint32_t>(value); };
      for (std::int64_t r = 0; r < rows; ++r) {
        simd::RowSoftmax row;
        float* of = alone.data() + r * width;
        simd::softmax_rows(of, 0, 1, count, before.data() + r, 0.7f, &row, p_alone.data() + r * width, 0);
        simd::softmax_rows(of, 0, 1, count, before.data() + r, 0.7f, &row);
        EXPECT_EQ(bits(row.maximum), bits(together[static_cast<std::size_t>(r)].maximum));
        EXPECT_EQ(bits(row.sum), bits(together[static_cast<std::size_t>(r)].sum));
      }
      for (std::size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(bits(x[i]), bits(alone[i]));
        ASSERT_EQ(p[i].bits, p_alone[i].bits);
      }
    }
}

TEST(Math, MaxKeepsNan) {
  for (int place = 0; place < 40; ++place) {
    std::vector<float> x(40, 1.0f);
    x[static_cast<std::size_t>(place)] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(simd::max(x.data(), 40))) << place;
  }
}

template <class T>
void expect_scalar_conversions(std::span<const float> x) {
  const auto count = static_cast<std::int64_t>(x.size());
  std::vector<T> narrow(x.size());
  std::vector<float> wide(x.size());
  simd::from_float(x.data(), dtype_of<T>(), narrow.data(), count);
  simd::to_float(narrow.data(), dtype_of<T>(), wide.data(), count);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const T expected = from_float<T>(x[i]);
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(wide[i])) << x[i];
      continue;
    }
    ASSERT_EQ(narrow[i].bits, expected.bits) << x[i];
    ASSERT_EQ(wide[i], to_float(expected)) << x[i];
  }
}

TEST(Convert, AgreesWithTheScalarForms) {
  std::vector<float> x;
  for (std::uint64_t bits = 0; bits < (1ull << 32); bits += 4093)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  for (int code = 0; code < 256; ++code) {  // every float8, and the middle between it and the next
    const auto value = [](int c) { return to_float(float8_e4m3{static_cast<std::uint8_t>(c)}); };
    x.push_back(value(code));
    x.push_back((value(code) + value((code + 1) % 256)) / 2);
  }
  expect_scalar_conversions<bfloat16>(x);
  expect_scalar_conversions<float16>(x);
  expect_scalar_conversions<float8_e4m3>(x);
  expect_scalar_conversions<float8_e4m3>(std::span(x).first(5));  // less than a vector
}

}  // namespace
}  // namespace chorale
