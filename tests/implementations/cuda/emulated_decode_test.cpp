// The decode kernel itself, compiled for this processor: its rings, barriers, places in shared memory and
// merges under random orders of warps and blocks of threads, against the bits of the forward kernel, which
// runs beside it. What the tensor cores and the copy engine do is emulated (emulation/).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "emulation/problem.h"
#include "sanitized.h"

namespace emulation {

extern const Kernel forward_plain, decode_plain, decode_page_1, decode_page_16, decode_page_256;
extern const Kernel forward_short, decode_short;
extern const Kernel forward_scored, decode_scored;
extern const Kernel forward_wide, decode_wide, decode_16_rows, decode_fp8;
extern const Kernel forward_32_rows, decode_32_rows;
// In clusters of two blocks of threads.
extern const Kernel decode_pair_plain, decode_pair_page_1, decode_pair_short, decode_pair_scored,
    decode_pair_wide, decode_pair_fp8, decode_pair_32_rows;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

class EmulatedDecode : public ::testing::Test {
  void SetUp() override {
    if (chorale::sanitized) GTEST_SKIP() << "sanitizers do not follow fibers";
  }
};

// Row blocks as one item each, as some of several chunks, as single chunks.
constexpr int multiprocessors[] = {1, 6, 1000};

void expect_bits(const Results& expected, const Problem& problem, const Kernel& kernel,
                 std::uint64_t orders = 3) {
  for (std::uint64_t seed = 0; seed < orders; ++seed) {
    const Order order{seed, static_cast<int>(1 + seed * 5 % 7), multiprocessors[seed % 3]};
    const std::optional<Results> results = problem.decode(kernel, order);
    if (!results) return;
    EXPECT_EQ(*results, expected) << kernel.name << " seed " << seed;
  }
}

// The forward's results, which are near float64's, are also those of the decodes.
void expect_one_result(const Problem& problem, const Kernel& forward,
                       const std::vector<const Kernel*>& decodes, std::uint64_t orders = 3) {
  const std::optional<Results> expected = problem.forward(forward, {.clusters = 2});
  ASSERT_TRUE(expected);
  problem.check(*expected);
  for (const Kernel* decode : decodes) expect_bits(*expected, problem, *decode, orders);
}

TEST_F(EmulatedDecode, PagesOfAnySize) {
  const Problem problem(forward_plain, {{1, 1}, {1, 130}, {1, 0}, {1, 2300}, {1, 256}, {1, 777}}, 1);
  expect_one_result(problem, forward_plain,
                    {&decode_plain, &decode_page_1, &decode_page_16, &decode_page_256, &decode_pair_plain,
                     &decode_pair_page_1});
}

// Blocks of threads that bring the last state of a row block while others are still at theirs.
TEST_F(EmulatedDecode, ManyMerges) {
  expect_one_result(Problem(forward_short, {{1, 500}}, 9), forward_short, {&decode_short, &decode_pair_short},
                    60);
}

// More states than a step merges.
TEST_F(EmulatedDecode, ManyStates) {
  const Problem problem(forward_short, {{1, 300}, {1, 8300}, {1, 128}, {1, 129}, {1, 4096}}, 2);
  expect_one_result(problem, forward_short, {&decode_short, &decode_pair_short});
}

TEST_F(EmulatedDecode, AnotherChunkGivesOtherBits) {
  const Problem problem(forward_plain, {{1, 500}}, 3);
  const std::optional<Results> results = problem.decode(decode_plain, {}),
                               others = problem.decode(decode_short, {});
  ASSERT_TRUE(results && others);
  problem.check(*others);
  EXPECT_NE(*results, *others);
}

// Long documents, of which the last positions of some sequences see little, then short ones.
std::vector<int> documents() {
  std::vector<int> of(2000);
  for (int i = 0; i < 2000; ++i) of[static_cast<std::size_t>(i)] = i < 1000 ? i / 200 : i / 70 % 5;
  return of;
}
// Values that are not finite, some of which some rows do not see.
void poison(Problem& problem) {
  for (int s = 0; s < problem.sequences(); ++s) {
    const int keys = problem.keys(s);
    if (keys < 100) continue;
    problem.set_value(s, 17, 0, 3, NAN);
    problem.set_value(s, keys - 90, 0, 5, infinity);
    problem.set_value(s, keys - 1, 1, 60, -infinity);
    problem.set_value(s, keys - 2, 1, 7, NAN);
  }
}

// Its row is NaN, not a row that has seen nothing.
TEST_F(EmulatedDecode, AQueryThatIsNaN) {
  Problem problem(forward_plain, {{1, 130}, {1, 2300}, {1, 1}}, 12);
  problem.set_query(0, 0, 3, 60, NAN);
  problem.set_query(1, 0, 0, 0, NAN);
  problem.set_query(2, 0, 5, 7, NAN);
  expect_one_result(problem, forward_plain, {&decode_plain, &decode_page_16, &decode_pair_plain});
}

TEST_F(EmulatedDecode, ScoresMasksAndSinks) {
  Problem problem(forward_scored, {{1, 900}, {1, 1}, {1, 1301}, {1, 0}, {1, 257}}, 4, documents());
  expect_one_result(problem, forward_scored, {&decode_scored, &decode_pair_scored});
  poison(problem);
  expect_one_result(problem, forward_scored, {&decode_scored, &decode_pair_scored});
}

TEST_F(EmulatedDecode, WideHeads) {
  Problem problem(forward_wide, {{1, 1200}, {1, 1}, {1, 640}, {1, 1531}}, 5, documents());
  poison(problem);
  expect_one_result(problem, forward_wide, {&decode_wide, &decode_16_rows, &decode_pair_wide});
}

TEST_F(EmulatedDecode, Of16Rows) {
  Problem problem(forward_wide, {{4, 1200}, {3, 3}, {1, 250}, {2, 1003}}, 6, documents());
  poison(problem);
  expect_one_result(problem, forward_wide, {&decode_16_rows});
}

TEST_F(EmulatedDecode, Of32Rows) {
  Problem problem(forward_32_rows, {{4, 1400}, {3, 3}, {1, 250}, {2, 1003}}, 7, documents());
  poison(problem);
  expect_one_result(problem, forward_32_rows, {&decode_32_rows, &decode_pair_32_rows});
}

TEST_F(EmulatedDecode, EightBitCaches) {
  Problem problem(decode_fp8, {{1, 1}, {1, 1300}, {1, 0}, {1, 520}}, 8);
  problem.set_value(1, 1290, 1, 3, NAN);
  expect_one_result(problem, forward_wide, {&decode_fp8, &decode_pair_fp8});
}

}  // namespace
}  // namespace emulation
