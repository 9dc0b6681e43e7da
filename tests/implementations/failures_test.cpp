// Ways in which attention libraries fail (docs/failures.md), as tests of every implementation: those classes
// that no other test names.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float.h"
#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::Data;
using conformance::Fill;
using conformance::Stored;

constexpr DType every_type[] = {DType::float32, DType::bfloat16, DType::float16};

std::vector<float> elements(const Stored& stored) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < stored.memory.elements(); ++i)
    values.push_back(load_element(stored.memory.view().data, stored.memory.dtype(), i));
  return values;
}
bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float x) { return std::isfinite(x); });
}

class Failures : public EveryImplementation {
 protected:
  static Case paged(DType dtype, int page_size) {
    return {.feature = "failures",
            .problem = {.query_heads = 4, .kv_heads = 2, .head_dim = 12, .value_head_dim = 9, .dtype = dtype},
            .sequences = {{2, 21, 1}, {1, 70, 2}, {19, 19, 3}},
            .page_size = page_size,
            .page_order = 8};
  }
  Data run(const Case& test, Background background = Background::zeros, int threads = 2) const {
    return conformance::run(implementation(), test, background, Device::cpu(threads)).value();
  }
  static void expect_same_results(const Data& x, const Data& y) {
    EXPECT_TRUE(conformance::same_bits(x.out, y.out));
    EXPECT_TRUE(conformance::same_bits(x.lse, y.lse));
    EXPECT_TRUE(conformance::same_bits(x.grad_q, y.grad_q));
    EXPECT_TRUE(conformance::same_bits(x.grad_k, y.grad_k));
    EXPECT_TRUE(conformance::same_bits(x.grad_v, y.grad_v));
  }
  // The elements of one row of a contiguous result.
  static std::vector<float> row(const Stored& stored, std::int64_t index) {
    const TensorView& view = stored.view;
    std::vector<float> values;
    for (std::int64_t i = 0; i < view.stride[0]; ++i)
      values.push_back(load_element(view.data, view.dtype, index * view.stride[0] + i));
    return values;
  }
};
INSTANTIATE_TEST_SUITE_P(Implementations, Failures, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Failures, Class01_UnusedSlotsAndPagesOfNobodyChangeNoBit) {
  for (const DType dtype : every_type) {
    for (const int page_size : {8, 32}) {
      const Case test = paged(dtype, page_size);
      const Data poisoned = run(test, Background::poison), clean = run(test, Background::zeros);
      ASSERT_FALSE(all_finite(elements(poisoned.k)) || all_finite(elements(poisoned.v)))
          << "nothing was poisoned";
      ASSERT_TRUE(all_finite(elements(clean.k)) && all_finite(elements(clean.v)));
      EXPECT_TRUE(all_finite(row(poisoned.out, 0)));
      expect_same_results(poisoned, clean);
    }
  }
}

TEST_P(Failures, Class02_WhatAMaskHidesHasNoEffect) {
  for (const DType dtype : every_type) {
    Case test = paged(dtype, 0);
    test.problem.mask = Mask::parse("causal and k % 5 != 2 and (q - k < 9 or k < 3)").value();
    const Data poisoned = run(test, Background::poison), clean = run(test, Background::zeros);
    ASSERT_FALSE(all_finite(elements(poisoned.k)) || all_finite(elements(poisoned.v)))
        << "nothing was poisoned";
    expect_same_results(poisoned, clean);
  }
}

TEST_P(Failures, Class04_TableEntriesThatNoSequenceUsesAreNeverRead) {
  const Case test = paged(DType::bfloat16, 16);
  Data data = conformance::make_data(test);
  const Data expected = run(test, Background::poison);
  // What conformance puts behind each table's end, and worse.
  ASSERT_TRUE(std::ranges::count(data.batch.block_table, 1 << 30) > 0);
  for (std::int32_t& page : data.batch.block_table)
    if (page == -7 || page == 1 << 30) page = std::numeric_limits<std::int32_t>::min();
  const auto plan = implementation().plan(test.problem, data.batch, Device::cpu(2)).value();
  ASSERT_TRUE(implementation().forward(*plan, data.forward()).is_ok());
  ASSERT_TRUE(implementation().backward(*plan, data.backward()).is_ok());
  expect_same_results(data, expected);
}

TEST_P(Failures, Class09_SequencesWithoutQueriesOrKeysChangeNothingElse) {
  for (const int page_size : {0, 4}) {
    Case full = paged(DType::bfloat16, page_size), gaps = full;
    full.sequences = {{5, 9, 1}, {1, 40, 2}};
    gaps.sequences = {{0, 0, 7}, {5, 9, 1}, {3, 0, 8}, {0, 7, 9}, {1, 40, 2}, {0, 0, 6}};
    const Data expected = run(full), data = run(gaps);
    for (std::int64_t i = 0; i < 5; ++i) {
      EXPECT_EQ(row(data.out, i), row(expected.out, i)) << "row " << i;
      EXPECT_EQ(row(data.lse, i), row(expected.lse, i)) << "row " << i;
    }
    for (std::int64_t i = 5; i < 8; ++i) {
      EXPECT_EQ(row(data.out, i), std::vector<float>(4 * 9, 0)) << "row " << i << " has no keys";
      EXPECT_EQ(row(data.lse, i), std::vector<float>(4, -std::numeric_limits<float>::infinity()));
    }
    EXPECT_EQ(row(data.out, 8), row(expected.out, 5));
    for (std::int64_t i = 0; i < 9; ++i) EXPECT_EQ(row(data.grad_k, i), row(expected.grad_k, i));
    for (std::int64_t i = 9; i < 16; ++i)
      EXPECT_EQ(row(data.grad_v, i), std::vector<float>(2 * 9, 0)) << "key " << i << " has no queries";
    for (std::int64_t i = 9; i < 49; ++i) EXPECT_EQ(row(data.grad_v, i + 7), row(expected.grad_v, i));
  }
}

TEST_P(Failures, Class10_LengthsNextToEveryBoundaryInOneBatch) {
  const auto edges = conformance::Edges::of(implementation().fingerprint({}, Device::cpu()));
  Case test = paged(DType::bfloat16, 16);
  test.problem.mask = mask::causal();
  test.sequences.clear();
  std::uint64_t content = 0;
  for (const int length : {0, 1, edges.tile - 1, edges.tile, edges.tile + 1})
    test.sequences.push_back({length, length, ++content});
  for (const int length : {edges.chunk - 1, edges.chunk, edges.chunk + 1})
    test.sequences.push_back({2, length, ++content});
  EXPECT_EQ(conformance::check(implementation(), test).failures, std::vector<std::string>{});
}

TEST_P(Failures, Class13_ScoresBeyondTheRangeOfExpGiveFiniteOutput) {
  for (const DType dtype : every_type) {
    for (const char* score : {"score * 900", "score - 123456.0", "score + 98765.0"}) {
      Case test = paged(dtype, 8);
      test.fill = Fill::large_scores;
      test.problem.score = Score::parse(score).value();
      const Data data = run(test);
      float largest = 0;
      for (const float value : elements(data.v)) largest = std::max(largest, std::abs(value));
      for (std::int64_t i = 0; i < data.batch.total_q(); ++i) {
        for (const float x : row(data.out, i)) EXPECT_LE(std::abs(x), largest) << score << ", row " << i;
        EXPECT_TRUE(all_finite(row(data.lse, i))) << score << ", row " << i;
        EXPECT_TRUE(all_finite(row(data.grad_q, i))) << score << ", row " << i;
      }
    }
  }
}

// One token as the last row of a prefill, of a chunk and of a decode, alone and beside others, on any number
// of threads.
TEST_P(Failures, Class21_ARowHasTheSameBitsAThousandTimes) {
  Case alone = paged(DType::bfloat16, 0);
  alone.problem.mask = mask::causal();
  alone.sequences = {{35, 35, 5}};
  Case chunk = alone, decode = alone, beside = alone, paged_beside = alone;
  chunk.sequences = {{5, 35, 5}};
  decode.sequences = {{1, 35, 5}};
  beside.sequences = {{35, 35, 5}, {1, 80, 1}, {16, 16, 2}};
  paged_beside.sequences = {{1, 35, 5}, {1, 30, 1}, {1, 120, 3}, {1, 1, 4}};
  paged_beside.page_size = 4;
  const Data first = run(alone);
  const std::vector<float> out = row(first.out, 34), lse = row(first.lse, 34);
  ASSERT_NE(out, row(first.out, 33)) << "control: another row has other bits";
  for (const Case& test : {alone, chunk, decode, beside, paged_beside}) {
    const Data data = conformance::make_data(test);
    const std::int64_t last = test.sequences[0].queries - 1;
    for (const int threads : {1, 2, 3, 5}) {
      const auto plan = implementation().plan(test.problem, data.batch, Device::cpu(threads)).value();
      for (int time = 0; time < 50; ++time) {
        ASSERT_TRUE(implementation().forward(*plan, data.forward()).is_ok());
        ASSERT_EQ(row(data.out, last), out)
            << test.describe() << ", " << threads << " threads, time " << time;
        ASSERT_EQ(row(data.lse, last), lse)
            << test.describe() << ", " << threads << " threads, time " << time;
      }
    }
  }
}

}  // namespace
}  // namespace chorale
