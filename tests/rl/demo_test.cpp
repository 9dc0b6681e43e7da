// The demonstration as it is committed, with fewer steps: no bit differs, and the model learns.
#include "rl/fixture.h"
#include "sanitized.h"

namespace chorale {
namespace {

class Demo : public TinyRunTest {};

TEST_F(Demo, LearnsAndAgreesToTheBit) {
  RunOptions demo = options("demo", {"grpo.steps=40", "trainer.evaluate_every=40"});
  demo.overrides.push_back(sanitized ? "warmup.steps=5" : "warmup.steps=300");
  if (sanitized) demo.overrides.insert(demo.overrides.end(), {"grpo.steps=2", "grpo.prompts=8"});
  demo.config_file = std::string(CHORALE_SOURCE_DIR) + "/examples/sum_digits/grpo.yaml";
  const auto run = finished(demo);
  const History& history = run->history();
  EXPECT_EQ(run->resolved().parity.requested, Parity::bitwise);
  EXPECT_EQ(history.comparison.different, 0);
  EXPECT_GT(history.comparison.tokens, sanitized ? 500 : 60'000);
  if (sanitized) return;  // too short to learn
  ASSERT_EQ(history.evaluations.size(), 2u);
  const double before = history.evaluations.front().reward, after = history.evaluations.back().reward;
  EXPECT_GT(before, 0.1) << "the warm-up must leave something to reward";
  EXPECT_GT(after, before + 0.1);
  EXPECT_GT(after, 0.75);
}

}  // namespace
}  // namespace chorale
