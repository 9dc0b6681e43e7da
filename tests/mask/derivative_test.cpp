#include <gtest/gtest.h>

#include <cmath>

#include "mask/program.h"
#include "random_program.h"

namespace chorale {
namespace {

TEST(Derivative, IsSimple) {
  const std::vector<Table> tables{score::alibi_slopes(4)};
  const std::pair<const char*, const char*> cases[] = {
      {"score", "1.0"},
      {"q", "0.0"},
      {"alibi(slopes)", "1.0"},
      {"softcap(50)", "1.0 - tanh(score / 50.0) * tanh(score / 50.0)"},
      {"softcap(50) then alibi(slopes)", "1.0 - tanh(score / 50.0) * tanh(score / 50.0)"},
      {"3 * score - score / 2", "2.5"},
      {"score * slopes[h]", "slopes[h]"},
      {"score * score", "score + score"},
      {"exp(score)", "exp(score)"},
      {"log(score)", "1.0 / score"},
      {"sqrt(score)", "0.5 * (1.0 / sqrt(score))"},
      {"1 / score", "-1.0 * (1.0 / score / score)"},
      {"max(score, 0)", "select(score < 0.0, 0.0, 1.0)"},
      {"min(score, 7)", "select(7.0 < score, 0.0, 1.0)"},
      {"abs(score)", "select(score < 0.0, -1.0, select(0.0 < score, 1.0, 0.0))"},
      {"select(causal, score, -inf)", "select(k <= q, 1.0, 0.0)"},
      {"score - score", "0.0"},
      {"-score", "-1.0"},
  };
  for (const auto& [text, expected] : cases)
    EXPECT_EQ(Score::parse(text, tables).value().derivative().to_string(), expected) << text;
}

// Differences of evaluate_score in float64, wherever two step sizes agree that the function is smooth.
TEST(Derivative, AgreesWithDifferences) {
  testing::RandomProgram random(31, true);
  int compared = 0, overflowed = 0;
  for (int i = 0; i < 4000; ++i) {
    const Score score = Score::from(random.floating(1 + i % 5)).value();
    for (int point = 0; point < 4; ++point) {
      const Point at{random.pick(3), random.pick(4), random.pick(50), random.pick(50)};
      const double x = static_cast<double>(random.pick(4000) - 2000) / 333;
      const auto value = [&](double s) { return evaluate_score(score.program(), at, s); };
      const auto slope = [&](double step) { return (value(x + step) - value(x - step)) / (2 * step); };
      const double coarse = slope(2e-5), fine = slope(1e-5),
                   derivative = evaluate_score(score.derivative(), at, x);
      const double scale = 1 + std::fabs(fine), noise = 1e-16 * std::fabs(value(x)) / 1e-5;
      if (!std::isfinite(coarse) || !std::isfinite(fine) || scale > 1e8 ||
          std::fabs(coarse - fine) > 1e-7 * scale || noise > 1e-7 * scale)
        continue;
      // The chain rule multiplies infinities by zeros where a step inside overflows: tanh(score / 0).
      if (std::isnan(derivative)) {
        ++overflowed;
        continue;
      }
      ASSERT_NEAR(derivative, fine, 1e-5 * scale) << i << ": " << score.to_string() << " at " << x << "\n"
                                                  << score.derivative().to_string();
      compared += fine != 0;
    }
  }
  EXPECT_GT(compared, 2000);
  EXPECT_LT(overflowed, compared / 20);
}

TEST(Derivative, SurvivesInfiniteConstants) {
  for (const char* text :
       {"score * inf / inf", "score / 0.0", "inf * score - inf * score", "score * 1e300 * 1e300"})
    EXPECT_TRUE(Score::parse(text).has_value()) << text;
}

}  // namespace
}  // namespace chorale
