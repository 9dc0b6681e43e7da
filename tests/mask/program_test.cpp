// Building programs: the canonical form, the combinators, tables bound later.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mask/program.h"
#include "random_program.h"

namespace chorale {
namespace {

using testing::RandomProgram;

TEST(Program, TextParsesToTheSameProgram) {
  RandomProgram random(1);
  const std::vector<Table> tables = random.tables();
  for (int i = 0; i < 3000; ++i) {
    const auto mask = Mask::from(random.boolean(1 + i % 6)).value();
    const auto parsed = Mask::parse(mask.to_string(), tables);
    ASSERT_TRUE(parsed.has_value()) << i << ": " << parsed.status().message();
    ASSERT_EQ(parsed->program(), mask.program()) << i << ": " << mask.to_string() << "\n"
                                                 << parsed->to_string();
  }
  RandomProgram scores(2, true);
  for (int i = 0; i < 3000; ++i) {
    const auto score = Score::from(scores.floating(1 + i % 6)).value();
    const auto parsed = Score::parse(score.to_string(), scores.tables());
    ASSERT_TRUE(parsed.has_value()) << parsed.status().message();
    ASSERT_EQ(parsed->program(), score.program()) << i << ": " << score.to_string();
  }
}

TEST(Program, EqualSubexpressionsAreOneInstruction) {
  const auto mask = Mask::parse("(q - k) * (q - k) < 16 and q - k < 3").value();
  EXPECT_EQ(mask.program().instructions().size(), 9u);  // 15 if written out
}

TEST(Program, SharedPartsStayLinear) {
  Expr power = expr::q();
  for (int i = 0; i < 60; ++i) power = power * power;  // 2^60 factors if written out
  const Mask mask = Mask::from(power < 3).value();
  EXPECT_LT(mask.to_string().size(), 4000u);
  EXPECT_EQ(Mask::parse(mask.to_string()).value().program(), mask.program());
}

TEST(Program, DepthIsNoDanger) {
  Expr left = expr::q() < 0, right = left, squares = expr::q();
  for (int i = 1; i < 40000; ++i) {
    left = left || expr::q() == i;
    right = (expr::q() == i) || right;
    squares = squares * squares + i;
  }
  for (const Expr& deep : {left, right, squares < 0}) {
    const Mask mask = Mask::from(deep).value();
    evaluate_mask(mask.program(), {.q = 3});
    classify(mask.program(), {.q = {0, 5}});
    if (mask.to_string().size() > (1 << 20)) continue;
    const auto parsed = Mask::parse(mask.to_string());
    ASSERT_TRUE(parsed.has_value()) << parsed.status().message();
    EXPECT_EQ(parsed->program(), mask.program());
  }
}

TEST(Program, TypeErrorsAreToldByFrom) {
  const auto error = [](const Expr& e) { return Mask::from(e).status().message(); };
  EXPECT_EQ(error((expr::q() < 3) + 1 < 2), "'+' needs numbers, not a boolean");
  EXPECT_EQ(error(expr::q()), "a mask must be a boolean, not an integer");
  EXPECT_EQ(error(expr::score() < 3), "'score' can only be used in a score program, not in a mask");
  EXPECT_EQ(error(expr::to_float(expr::q()) < std::nan("")), "a constant is NaN: it must be a number");
  EXPECT_EQ(error(expr::at(Table::integers("t", {1}), expr::q(), expr::k()) == 1),
            "table t needs one index, not 2");
  EXPECT_EQ(Score::from(expr::q() < 3).status().message(), "'float' needs numbers, not a boolean");
}

TEST(Program, FloatsOfMasksAreFloat32AndOfScoresFloat64) {
  const Mask mask = Mask::parse("float(q) < 0.1 + 0.2").value();
  EXPECT_EQ(mask.to_string(),
            "float(q) < 0.3");  // 0.1f + 0.2f is 0.3f, rounded once more than the sum of doubles
  EXPECT_EQ(Score::parse("score * (0.1 + 0.2)").value().to_string(), "score * 0.30000000000000004");
}

TEST(Program, ConstantsThatAreNotNumbersStayOperations) {
  const Mask mask = Mask::parse("0.0 / 0.0 < 1.0").value();
  EXPECT_EQ(mask.to_string(), "0.0 / 0.0 < 1.0");
  EXPECT_FALSE(evaluate_mask(mask.program(), {}));
  const Mask zeros = Mask::parse("1.0 / select(causal, 0.0, -0.0) < 0.0").value();
  EXPECT_TRUE(evaluate_mask(zeros.program(), {.q = 0, .k = 1})) << "0 and -0 are different constants";
  EXPECT_FALSE(evaluate_mask(zeros.program(), {.q = 1, .k = 0}));
}

TEST(Mask, Combinators) {
  EXPECT_TRUE(Mask().is_all());
  EXPECT_TRUE(mask::all().is_all());
  EXPECT_TRUE((mask::all() && mask::all()).is_all());
  EXPECT_FALSE(mask::causal().is_all());
  EXPECT_EQ((mask::causal() && mask::window(4)).to_string(), "k <= q and q - k < 4");
  EXPECT_EQ((mask::causal() || !mask::window(4)).to_string(), "k <= q or not q - k < 4");
  EXPECT_EQ(mask::window(3, 0).to_string(), "q - k <= 3 and k - q <= 0");
  EXPECT_TRUE(mask::window(-1, -1).is_all());
  EXPECT_EQ(mask::prefix_lm(7).to_string(), "k < 7 or k <= q");
  EXPECT_EQ((mask::causal() && mask::all()).program(), mask::causal().program());
  Mask chain = mask::causal();
  for (int i = 0; i < 300; ++i) chain = chain || mask::window(i + 1, 0);
  EXPECT_TRUE(evaluate_mask(chain.program(), {.q = 3, .k = 3}));
}

TEST(Mask, AWindowShowsExactlyItsSize) {
  for (const std::int64_t size : {1, 2, 3, 17}) {
    const Mask window = mask::causal() && mask::window(size);
    for (std::int64_t q = 0; q < 40; ++q) {
      std::int64_t visible = 0;
      for (std::int64_t k = 0; k < 40; ++k) visible += evaluate_mask(window.program(), {.q = q, .k = k});
      EXPECT_EQ(visible, std::min(size, q + 1)) << "size " << size << ", q " << q;
    }
  }
}

TEST(Mask, TablesAreBoundByName) {
  const Mask mask = mask::document(Table::integers("ids", {0, 0, 1, 1})) && mask::causal();
  const auto bound =
      mask.with_tables(std::vector{Table::integers("other", {5}), Table::integers("ids", {0, 1, 2})});
  ASSERT_TRUE(bound.has_value()) << bound.status().message();
  EXPECT_TRUE(evaluate_mask(mask.program(), {.q = 1, .k = 0}));
  EXPECT_FALSE(evaluate_mask(bound->program(), {.q = 1, .k = 0}));
  EXPECT_EQ(bound->to_string(), mask.to_string());

  const auto error = [&](const Table& table) {
    return mask.with_tables(std::vector{table}).status().message();
  };
  EXPECT_EQ(error(Table::floats("ids", {1.0f})),
            "table ids is a float table of rank 1: the program needs an integer table of rank 1");
  EXPECT_EQ(error(Table::integers_2d("ids", 1, 1, {1}).value()),
            "table ids is an integer table of rank 2: the program needs an integer table of rank 1");
}

TEST(Score, CombinatorsCompose) {
  EXPECT_TRUE(Score().is_identity());
  EXPECT_TRUE(score::softcap(0).is_identity());
  const Score capped = score::softcap(20).then(score::alibi(score::alibi_slopes(4)));
  EXPECT_EQ(capped.to_string(), "20.0 * tanh(score / 20.0) - slopes[h] * float(abs(q - k))");
  EXPECT_EQ(Score().then(capped).program(), capped.program());
  EXPECT_EQ(capped.then(Score()).program(), capped.program());
  EXPECT_NEAR(evaluate_score(capped.program(), {.h = 1, .q = 9, .k = 5}, 30.0),
              20 * std::tanh(1.5) - 0.0625 * 4, 1e-12);
}

TEST(Score, AlibiSlopes) {
  const auto slope = [](int heads, int h) {
    const Score score = score::alibi(score::alibi_slopes(heads));
    return -evaluate_score(score.program(), {.h = h, .q = 1, .k = 0}, 0.0);
  };
  EXPECT_EQ(slope(8, 0), 0.5);
  EXPECT_EQ(slope(8, 7), std::exp2(-8));
  // The published list for 12 heads: those of 8, then every other one of 16.
  EXPECT_EQ(slope(12, 7), std::exp2(-8));
  EXPECT_FLOAT_EQ(slope(12, 8), std::exp2(-0.5));
  EXPECT_FLOAT_EQ(slope(12, 11), std::exp2(-3.5));
  EXPECT_EQ(score::alibi_slopes(0).rows(), 0);
}

}  // namespace
}  // namespace chorale
