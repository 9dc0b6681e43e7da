// Element by element, against arithmetic written here with 128 bits; and rows against elements.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mask/program.h"
#include "random_program.h"

namespace chorale {
namespace {

using testing::RandomProgram;

std::int64_t saturate(__int128 value) {
  const __int128 least = std::numeric_limits<std::int64_t>::min(),
                 most = std::numeric_limits<std::int64_t>::max();
  return static_cast<std::int64_t>(std::clamp(value, least, most));
}
__int128 floor_quotient(__int128 x, __int128 y) {
  if (y == 0) return 0;
  __int128 quotient = x / y;
  while (quotient * y > x && y > 0) --quotient;
  while (quotient * y < x && y < 0) --quotient;
  return quotient;
}

TEST(Evaluate, IntegersSaturateAndRoundDown) {
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min(),
                         most = std::numeric_limits<std::int64_t>::max();
  const std::int64_t values[] = {least, least + 1, least / 2, -4294967296, -7,       -2,       -1,  0, 1, 2,
                                 3,     7,         64,        4294967297,  most / 2, most - 1, most};
  using expr::b;
  using expr::h;
  const auto equals = [](const Expr& value) { return Mask::from(value == expr::q()).value(); };
  const Mask sum = equals(b() + h()), difference = equals(b() - h()), product = equals(b() * h()),
             quotient = equals(b() / h()), remainder = equals(b() % h()), negation = equals(-b()),
             absolute = equals(expr::abs(b()));
  for (const std::int64_t x : values)
    for (const std::int64_t y : values) {
      const auto expect = [&](const Mask& mask, __int128 value) {
        EXPECT_TRUE(evaluate_mask(mask.program(), {.b = x, .h = y, .q = saturate(value)}))
            << mask.to_string() << " b=" << x << " h=" << y;
      };
      const __int128 X = x, Y = y;
      expect(sum, X + Y);
      expect(difference, X - Y);
      expect(product, X * Y);
      expect(quotient, floor_quotient(X, Y));
      expect(remainder, y == 0 ? 0 : X - floor_quotient(X, Y) * Y);
      expect(negation, -X);
      expect(absolute, X < 0 ? -X : X);
    }
}

TEST(Evaluate, FloatsOfMasksAreFloat32) {
  EXPECT_TRUE(evaluate_mask(Mask::parse("float(q) == 16777216.0").value().program(), {.q = 16777217}))
      << "float32 has no 16777217";
  EXPECT_EQ(evaluate_score(Score::parse("float(q)").value().program(), {.q = 16777217}, 0), 16777217.0);
  EXPECT_FALSE(evaluate_mask(Mask::parse("log(float(q)) == log(float(q))").value().program(), {.q = -1}))
      << "NaN";
}

TEST(RowEvaluator, MasksEqualElementsExactly) {
  RandomProgram random(11);
  std::vector<std::uint8_t> row;
  int mixed = 0;
  for (int i = 0; i < 4000; ++i) {
    const Mask mask = Mask::from(random.boolean(1 + i % 6)).value();
    RowEvaluator evaluator(mask.program());
    const std::int64_t count = i % 50 == 0 ? 600 : 1 + random.pick(70);  // several blocks now and then
    for (int repeat = 0; repeat < 3; ++repeat) {  // nothing may stay from the row before
      const Point start{random.pick(3), random.pick(4), random.pick(80) - 20, random.pick(60) - 10};
      row.assign(static_cast<std::size_t>(count) + 1, 77);
      evaluator.mask(start, count, row.data());
      int visible = 0;
      for (std::int64_t n = 0; n < count; ++n) {
        const bool expected = evaluate_mask(mask.program(), {start.b, start.h, start.q, start.k + n});
        ASSERT_EQ(row[static_cast<std::size_t>(n)], expected ? 1 : 0)
            << "program " << i << ": " << mask.to_string() << " q=" << start.q << " k=" << start.k + n;
        visible += expected;
      }
      EXPECT_EQ(row.back(), 77) << "wrote behind the row";
      mixed += visible > 0 && visible < count;
    }
  }
  EXPECT_GT(mixed, 1000) << "the random masks must not all be constant";
}

TEST(RowEvaluator, SaturationAtTheEnds) {
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min(),
                         most = std::numeric_limits<std::int64_t>::max();
  for (const char* text : {"q + k < 0", "q - k > 0", "q * k > 7", "k * k * k * q >= 0",
                           "-k * 4611686018427387904 > q", "q / k == -q", "q % k == 0"}) {
    const Mask mask = Mask::parse(text).value();
    RowEvaluator evaluator(mask.program());
    for (const std::int64_t q :
         {least, least + 3, std::int64_t{-1}, std::int64_t{0}, std::int64_t{5}, most - 2, most})
      for (const std::int64_t k : {least, std::int64_t{-20}, most - 40}) {
        std::uint8_t row[40];
        evaluator.mask({.q = q, .k = k}, 40, row);
        for (int n = 0; n < 40; ++n)
          ASSERT_EQ(row[n], evaluate_mask(mask.program(), {.q = q, .k = k + n}))
              << text << " " << q << " " << k + n;
      }
  }
}

// Scores of rows are float32 and those of elements float64: close where the program is well conditioned.
TEST(RowEvaluator, ScoresAreCloseToElements) {
  const std::vector<Table> tables{score::alibi_slopes(6),
                                  Table::floats_2d("bias", 6, 700, std::vector<float>(4200, 0.25f)).value()};
  for (const char* text : {"score", "softcap(50)", "alibi(slopes)", "softcap(20) then alibi(slopes)",
                           "score + bias[h, k] - bias[h, q]", "select(k % 2 == 0, score, score / 3)",
                           "score * sqrt(float(k) + 1)", "max(score, -1) * exp(-abs(score) / 8)",
                           "min(score, 4) + log(float(abs(q - k)) + 1)", "float(q) / 7", "3.5"}) {
    const Score score = Score::parse(text, tables).value();
    RowEvaluator evaluator(score.program());
    std::vector<float> scores(700), out(700);
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = std::sin(static_cast<float>(i)) * 30;
    const Point start{.h = 3, .q = 400};
    evaluator.score(start, 700, scores.data(), out.data());
    for (std::int64_t k = 0; k < 700; ++k) {
      const double expected =
          evaluate_score(score.program(), {.h = 3, .q = 400, .k = k}, scores[static_cast<std::size_t>(k)]);
      ASSERT_NEAR(out[static_cast<std::size_t>(k)], expected, 4e-6 * (1 + std::fabs(expected)))
          << text << " k=" << k;
    }
    evaluator.score(start, 700, scores.data(), scores.data());
    EXPECT_EQ(std::memcmp(scores.data(), out.data(), 700 * sizeof(float)), 0) << text << ": in place";
  }
}

// A row's bits do not depend on how it is cut, nor on what could be computed once.
TEST(RowEvaluator, ScoresHaveTheSameBitsHoweverTheRowIsCut) {
  RandomProgram random(12, true);
  for (int i = 0; i < 500; ++i) {
    const Score score = Score::from(random.floating(1 + i % 5)).value();
    RowEvaluator evaluator(score.program());
    std::vector<float> scores(300), whole(300), cut(300);
    for (float& s : scores) s = static_cast<float>(random.pick(4000) - 2000) / 100;
    evaluator.score({.b = 1, .h = 2, .q = 37, .k = 0}, 300, scores.data(), whole.data());
    for (std::int64_t at = 0, part = 0; at < 300; at += part) {
      part = std::min<std::int64_t>(1 + random.pick(40), 300 - at);
      evaluator.score({.b = 1, .h = 2, .q = 37, .k = at}, part, scores.data() + at, cut.data() + at);
    }
    ASSERT_EQ(std::memcmp(whole.data(), cut.data(), 300 * sizeof(float)), 0)
        << i << ": " << score.to_string();
  }
}

// k - k + h is as uniform as h, but the evaluator cannot know.
TEST(RowEvaluator, HoistingChangesNoBit) {
  for (const char* function : {"tanh", "exp", "log", "sqrt"}) {
    const std::string f = function;
    const Score hoisted = Score::parse(f + "(float(h) / 7) + 0 * score").value(),
                varying = Score::parse(f + "(float(h + k - k) / 7) + 0 * score").value();
    RowEvaluator one(hoisted.program()), many(varying.program());
    for (std::int64_t h = 1; h < 200; ++h) {
      std::vector<float> scores(37, 1.0f), x(37), y(37);
      one.score({.h = h}, 37, scores.data(), x.data());
      many.score({.h = h}, 37, scores.data(), y.data());
      ASSERT_EQ(std::memcmp(x.data(), y.data(), 37 * sizeof(float)), 0) << function << " " << h;
    }
  }
}

}  // namespace
}  // namespace chorale
