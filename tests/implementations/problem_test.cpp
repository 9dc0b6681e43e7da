// Problem, Fingerprint and Device: their limits and their words.
#include "chorale/problem.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "chorale/implementation.h"

namespace chorale {
namespace {

using ::testing::HasSubstr;

const Problem valid{.query_heads = 8, .kv_heads = 2, .head_dim = 64};

TEST(Problem, RefusalsNameTheFieldTheValueAndTheLimit) {
  struct Refusal {
    std::function<void(Problem&)> change;
    std::string sentence;
  };
  const Refusal refusals[] = {
      {[](Problem& p) { p.query_heads = 0; }, "query_heads 0: must be at least 1"},
      {[](Problem& p) { p.query_heads = -4; }, "query_heads -4: must be at least 1"},
      {[](Problem& p) { p.kv_heads = 0; }, "kv_heads 0: must be at least 1"},
      {[](Problem& p) { p.kv_heads = 3; }, "query_heads 8: must be a multiple of kv_heads 3"},
      {[](Problem& p) { p.kv_heads = 16; }, "query_heads 8: must be a multiple of kv_heads 16"},
      {[](Problem& p) { p.head_dim = 0; }, "head_dim 0: must be from 1 to 256"},
      {[](Problem& p) { p.head_dim = 257; }, "head_dim 257: must be from 1 to 256"},
      {[](Problem& p) { p.value_head_dim = -1; }, "value_head_dim -1: must be from 0 to 256"},
      {[](Problem& p) { p.value_head_dim = 300; }, "value_head_dim 300: must be from 0 to 256"},
      {[](Problem& p) { p.dtype = static_cast<DType>(9); }, "dtype 9: must be float32, bfloat16 or float16"},
      {[](Problem& p) { p.scale = -0.5f; },
       "scale -0.5: must be finite and positive, or 0 for 1 / sqrt(head_dim)"},
      {[](Problem& p) { p.scale = std::numeric_limits<float>::infinity(); }, "scale inf: must be finite"},
      {[](Problem& p) { p.scale = NAN; }, "scale nan: must be finite"},
      {[](Problem& p) { p.first_query_head = -1; }, "first_query_head -1: must be from 0 to 2147483639"},
      {[](Problem& p) { p.first_query_head = std::numeric_limits<int>::max(); },
       "first_query_head 2147483647: must be from 0 to 2147483639"},
  };
  ASSERT_TRUE(valid.validate().is_ok());
  for (const Refusal& refusal : refusals) {
    Problem problem = valid;
    refusal.change(problem);
    EXPECT_EQ(problem.validate().code(), Code::invalid_argument);
    EXPECT_THAT(problem.validate().message(), HasSubstr(refusal.sentence));
  }
}

TEST(Problem, DefaultsAndDescription) {
  Problem problem = valid;
  EXPECT_EQ(problem.scale_or_default(), 0.125f);
  EXPECT_EQ(problem.value_dim(), 64);
  EXPECT_EQ(problem.group_size(), 4);
  EXPECT_EQ(problem.describe(), "8 query heads, 2 KV heads, head_dim 64, bfloat16, scale 0.125");
  problem.value_head_dim = 32;
  problem.scale = 0.5f;
  problem.sinks = true;
  problem.first_query_head = 8;
  problem.mask = mask::causal();
  EXPECT_EQ(problem.describe(),
            "8 query heads, 2 KV heads, head_dim 64, value_head_dim 32, bfloat16, scale 0.5, mask \"" +
                problem.mask.to_string() + "\", sinks, heads from 8");
}

TEST(Fingerprint, PrintsAndTellsDifferences) {
  const Fingerprint x{{{"kernel", "tiled"}, {"T", "64"}, {"C", "1024"}}};
  Fingerprint y = x;
  EXPECT_EQ(x.to_string(), "tiled/T64/C1024");
  EXPECT_EQ(x.difference(y), "");
  y.parts[1].value = "128";
  EXPECT_EQ(x.difference(y), "T is 64 here and 128 there");
  y.parts.pop_back();
  EXPECT_EQ(x.difference(y), "T is 64 here and 128 there; C is 1024 here and absent there");
  EXPECT_EQ(y.difference(x), "T is 128 here and 64 there; C is absent here and 1024 there");
  EXPECT_EQ(x.difference({{x.parts[1], x.parts[0], x.parts[2]}}), "the same parts come in another order");
}

TEST(Device, SaysWhatRuns) {
  EXPECT_THAT(Device::cpu(1).describe(), ::testing::MatchesRegex("cpu \\(.+, 1 thread\\)"));
  EXPECT_THAT(Device::cpu(3).describe(), ::testing::MatchesRegex("cpu \\(.+, 3 threads\\)"));
}

}  // namespace
}  // namespace chorale
