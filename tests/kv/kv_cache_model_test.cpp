// Random calls on a KvCache, beside the model of cache_model.h.
#include <gtest/gtest.h>

#include <random>

#include "kv/cache_model.h"

namespace chorale {
namespace {

using kv_model::CacheModel;
using kv_model::Setup;

constexpr int steps = CHORALE_MODEL_TEST_STEPS;  // per seed

class ModelTest : public testing::TestWithParam<Setup> {};

TEST_P(ModelTest, HoldsWhatTheModelHolds) {
  std::mt19937_64 random;
  CacheModel model(GetParam(), [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  });
  for (const std::uint64_t seed : {11u, 23u}) {
    random.seed(seed);
    for (int i = 0; i < steps; ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", step " << i);
      model.step();
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(model.refusals, 0) << "the pool was never full";
  EXPECT_GT(model.found_tokens, 0);
  EXPECT_GT(model.swaps, 0);
  EXPECT_GT(model.most_cached, 0);
  EXPECT_GT(model.mistakes, 0);
  model.free_all();
}

INSTANTIATE_TEST_SUITE_P(All, ModelTest,
                         testing::Values(Setup{1, nullptr}, Setup{2, kv_model::colliding_hash},
                                         Setup{4, nullptr}, Setup{16, kv_model::colliding_hash}),
                         [](const auto& instance) {
                           return "Page" + std::to_string(instance.param.page_size) +
                                  (instance.param.hash ? "Colliding" : "");
                         });

}  // namespace
}  // namespace chorale
