// The forward kernel itself, compiled for this processor: its rings, barriers and places in shared memory
// under random orders of its warps. What the tensor cores and the copy engine do is emulated (emulation/).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "emulation/problem.h"
#include "sanitized.h"

namespace emulation {

extern const Kernel forward_packed, forward_paged, forward_groups, forward_unmasked;

namespace {

constexpr std::uint64_t orders = 4;
constexpr float infinity = std::numeric_limits<float>::infinity();

class EmulatedForward : public ::testing::TestWithParam<const Kernel*> {
  void SetUp() override {
    if (chorale::sanitized) GTEST_SKIP() << "sanitizers do not follow fibers";
  }
};
INSTANTIATE_TEST_SUITE_P(Kernels, EmulatedForward,
                         ::testing::Values(&forward_packed, &forward_paged, &forward_groups,
                                           &forward_unmasked),
                         [](const auto& kernel) { return std::string(kernel.param->name); });

// Whatever the order of warps: the same bits, which are near those of float64.
void expect_one_result(const Problem& problem, const Kernel& kernel) {
  std::optional<Results> first;
  for (std::uint64_t seed = 0; seed < orders; ++seed) {
    const std::optional<Results> results = problem.forward(kernel, {.seed = seed});
    if (!results) return;
    if (!first) {
      first = results;
      problem.check(*first);
    }
    EXPECT_EQ(results, first) << seed;
  }
}

TEST_P(EmulatedForward, RandomOrdersGiveOneResult) {
  expect_one_result(Problem(*GetParam(), {{1, 1}, {130, 130}, {40, 420}, {64, 64}, {7, 20}}, 1), *GetParam());
}

// Of some of these values some rows of a block see nothing: such a block is done twice.
TEST_P(EmulatedForward, RowBlocksThatGiveNaNAreDoneAgain) {
  std::vector<Lengths> lengths(6, {70, 70});
  lengths.push_back({100, 233});
  lengths.push_back({1, 1});
  lengths.push_back({64, 64});
  Problem problem(*GetParam(), lengths, 2);
  for (const int s : {0, 1, 4, 6, 8}) {
    problem.set_value(s, 20, 0, 3, NAN);
    problem.set_value(s, 33, 1, 5, infinity);
    problem.set_value(s, 41, 1, 5, infinity);
    problem.set_value(s, problem.keys(s) - 2, 0, 60, infinity);
  }
  expect_one_result(problem, *GetParam());
}

// A row that is NaN by its query is done twice in vain, and stays alone with it.
TEST_P(EmulatedForward, AQueryThatIsNaN) {
  Problem problem(*GetParam(), {{70, 70}, {1, 300}, {130, 260}}, 4);
  problem.set_query(0, 30, 0, 5, NAN);
  problem.set_query(1, 0, 1, 0, NAN);
  problem.set_query(2, 129, 0, 63, NAN);
  expect_one_result(problem, *GetParam());
}

TEST_P(EmulatedForward, Documents) {
  std::vector<int> documents(300);
  for (int i = 0; i < 300; ++i) documents[static_cast<std::size_t>(i)] = i / 37;
  Problem problem(*GetParam(), {{300, 300}, {90, 250}}, 3, documents);
  problem.set_value(0, 100, 0, 0, NAN);
  expect_one_result(problem, *GetParam());
}

}  // namespace
}  // namespace emulation
