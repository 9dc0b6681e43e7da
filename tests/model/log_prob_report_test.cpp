#include "model/log_prob_report.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

namespace chorale {
namespace {

TEST(LogProbComparison, IdenticalTokens) {
  LogProbComparison comparison;
  const std::array recorded{-0.5f, -std::numeric_limits<float>::infinity(), 0.0f};
  ASSERT_TRUE(comparison.add(recorded, recorded).is_ok());
  EXPECT_TRUE(comparison.identical());
  EXPECT_EQ(comparison.report(),
            "LOGPROB COMPARISON RESULTS\n"
            "Bitwise identical : True\n"
            "Tokens checked    : 3\n"
            "Tokens different  : 0\n"
            "Max delta         : 0.000000e+00\n"
            "Avg delta         : 0.000000e+00\n"
            "Diff mean         : 0.000000e+00\n"
            "Diff max          : 0.000000e+00\n");
}

TEST(LogProbComparison, OneBitIsADifference) {
  LogProbComparison comparison;
  comparison.add(-1.0f, std::nextafter(-1.0f, 0.0f));
  comparison.add(-2.0f, -2.0f);
  EXPECT_FALSE(comparison.identical());
  EXPECT_EQ(comparison.different, 1);
  EXPECT_DOUBLE_EQ(comparison.max_delta, std::ldexp(1.0, -24));
  EXPECT_DOUBLE_EQ(comparison.average_delta(), std::ldexp(1.0, -25));
  EXPECT_NEAR(comparison.max_diff, std::exp(-1.0) * std::ldexp(1.0, -24), 1e-12);
  EXPECT_NE(comparison.report().find("Bitwise identical : False"), std::string::npos);
}

TEST(LogProbComparison, ValuesThatAreNoNumbersNeverPass) {
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinity = std::numeric_limits<float>::infinity();
  for (const auto& [x, y] : {std::pair(nan, -1.0f), std::pair(-1.0f, nan), std::pair(-infinity, -1.0f)}) {
    LogProbComparison comparison;
    comparison.add(x, y);
    EXPECT_FALSE(comparison.identical());
    EXPECT_EQ(comparison.max_delta, std::numeric_limits<double>::infinity());
  }
}

TEST(LogProbComparison, AddsUpAndWantsPairs) {
  LogProbComparison one, two, both;
  one.add(-1.0f, -1.5f), two.add(-2.0f, -2.0f), two.add(-3.0f, -2.0f);
  both.add(one), both.add(two);
  EXPECT_EQ(both.tokens, 3);
  EXPECT_EQ(both.different, 2);
  EXPECT_DOUBLE_EQ(both.max_delta, 1.0);
  EXPECT_DOUBLE_EQ(both.average_delta(), 0.5);
  EXPECT_EQ(one.add(std::array{-1.0f}, std::array{-1.0f, -2.0f}).code(), Code::invalid_argument);
  EXPECT_EQ(one.tokens, 1);
}

}  // namespace
}  // namespace chorale
