// The decode kernel itself, compiled for this processor, against the forward kernel's bits and float64.
#include <gtest/gtest.h>

#include "emulation/problem.h"
#include "sanitized.h"

namespace emulation {

extern const Kernel forward_plain, decode_plain;

namespace {

class EmulatedDecode : public ::testing::Test {
  void SetUp() override {
    if (chorale::sanitized) GTEST_SKIP() << "sanitizers do not follow fibers";
  }
};

constexpr std::uint64_t orders = 3;

void expect_bits_of(const Results& expected, const Problem& problem, const Kernel& kernel) {
  constexpr int clusters[] = {1, 3, 6}, multiprocessors[] = {1, 8, 1000};
  for (std::uint64_t seed = 0; seed < orders; ++seed) {
    const std::optional<Results> results =
        problem.decode(kernel, {seed, clusters[seed % 3], multiprocessors[seed % 3]});
    if (!results) return;
    EXPECT_EQ(*results, expected) << kernel.name << " seed " << seed;
  }
}

TEST_F(EmulatedDecode, GivesTheForwardsBits) {
  const Problem problem(forward_plain, {{1, 1}, {1, 130}, {1, 0}, {1, 1500}, {1, 256}, {1, 777}}, 1);
  const std::optional<Results> expected = problem.forward(forward_plain, {.clusters = 2});
  ASSERT_TRUE(expected);
  problem.check(*expected);
  expect_bits_of(*expected, problem, decode_plain);
}

}  // namespace
}  // namespace emulation
