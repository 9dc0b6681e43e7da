// Cases whose answer is known without an oracle.
#include <bit>
#include <cmath>
#include <limits>

#include "base/float.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::Data;
using conformance::Fill;

constexpr DType types[] = {DType::float32, DType::bfloat16, DType::float16};

class Exact : public EveryImplementation {
 protected:
  // Many short sequences and some longer than a tile and a chunk, in small pages.
  static Case plain(DType dtype, Fill fill) {
    Case test{
        .feature = "exact",
        .problem = {.query_heads = 4, .kv_heads = 2, .head_dim = 16, .value_head_dim = 24, .dtype = dtype}};
    for (std::uint64_t content = 0; content < 40; ++content)
      test.sequences.push_back({1, 1 + static_cast<std::int32_t>(content * 5), content});
    test.sequences.push_back({7, 65, 40});
    test.sequences.push_back({2, 1100, 41});
    test.page_size = 4;
    test.fill = fill;
    return test;
  }
  Data run(const Case& test) const {
    return conformance::run(implementation(), test, Background::poison, Device::cpu()).value();
  }

  // Calls body(sequence, row of q, position, head).
  template <class Body>
  static void for_each_row(const Case& test, Body&& body) {
    std::int64_t row = 0;
    for (std::size_t b = 0; b < test.sequences.size(); ++b) {
      for (std::int64_t i = 0; i < test.sequences[b].queries; ++i, ++row) {
        for (int head = 0; head < test.problem.query_heads; ++head) {
          body(static_cast<int>(b), row, test.sequences[b].keys - test.sequences[b].queries + i, head);
        }
      }
    }
  }
  static float lse(const Data& data, std::int64_t row, int head) {
    return load_element(data.lse.view.data, DType::float32, row * data.lse.view.stride[0] + head);
  }
  static float out(const Data& data, std::int64_t row, int head, int column) {
    const TensorView& view = data.out.view;
    return load_element(view.data, view.dtype, row * view.stride[0] + head * view.stride[1] + column);
  }
};
INSTANTIATE_TEST_SUITE_P(Implementations, Exact, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Exact, ZeroQueriesCountTheVisibleKeys) {
  for (const std::int64_t width : {1, 2, 64, 65, 1025, 5000}) {
    Case test = plain(DType::float32, Fill::zero_queries);
    test.problem.mask = mask::causal() && mask::window(width);
    const Data data = run(test);
    for_each_row(test, [&](int, std::int64_t row, std::int64_t position, int head) {
      const double wanted = std::log(static_cast<double>(std::min(width, position + 1)));
      EXPECT_NEAR(lse(data, row, head), wanted, 0x1p-22 * wanted)
          << "window " << width << ", position " << position;
    });
  }
}

TEST_P(Exact, ADominantKeyGivesItsValueToTheBit) {
  for (const DType dtype : types) {
    const Case test = plain(dtype, Fill::dominant_key);
    const Data data = run(test);
    for_each_row(test, [&](int b, std::int64_t row, std::int64_t, int head) {
      const int kv_head = head / test.problem.group_size();
      const auto keys = conformance::read_keys(test.problem, data.batch, b, data.k.view, {}, kv_head);
      const auto values = conformance::read_keys(test.problem, data.batch, b, data.v.view, {}, kv_head);
      std::int64_t winner = 0;
      while (keys.row(winner)[0] == 0) ++winner;
      for (int c = 0; c < test.problem.value_dim(); ++c) {
        ASSERT_EQ(out(data, row, head, c), values.row(winner)[static_cast<std::size_t>(c)])
            << name(dtype) << ", sequence " << b << ", head " << head << ", column " << c;
      }
    });
  }
}

TEST_P(Exact, UnitValuesGiveOne) {
  for (const DType dtype : types) {
    const Case test = plain(dtype, Fill::unit_values);
    const Data data = run(test);
    // float32 sums the weights twice in different orders; the 16-bit types round that away.
    const double tolerance = dtype == DType::float32 ? 0x1p-20 : 0;
    for_each_row(test, [&](int, std::int64_t row, std::int64_t, int head) {
      for (int c = 0; c < test.problem.value_dim(); ++c)
        EXPECT_NEAR(out(data, row, head, c), 1, tolerance) << name(dtype);
    });
  }
}

TEST_P(Exact, ARowThatSeesNothingIsZero) {
  for (const bool sinks : {false, true}) {
    Case test = plain(DType::bfloat16, Fill::normal);
    test.problem.sinks = sinks;
    test.problem.mask = mask::causal();
    test.sequences = {{0, 0, 1}, {3, 0, 2}, {70, 3, 3}, {0, 9, 4}, {1, 1, 5}};
    const Data data = run(test);
    for_each_row(test, [&](int, std::int64_t row, std::int64_t position, int head) {
      if (position >= 0) return;
      const float empty = sinks ? load_element(data.sinks.view.data, DType::float32, head)
                                : -std::numeric_limits<float>::infinity();
      EXPECT_EQ(lse(data, row, head), empty);
      for (int c = 0; c < test.problem.value_dim(); ++c) {
        EXPECT_EQ(std::bit_cast<std::uint32_t>(out(data, row, head, c)), 0u) << "not even -0";
      }
    });
  }
}

TEST_P(Exact, NoSequencesIsNoWork) {
  Case test = plain(DType::bfloat16, Fill::normal);
  test.sequences.clear();
  EXPECT_EQ(conformance::check(implementation(), test).failures, std::vector<std::string>{});
}

}  // namespace
}  // namespace chorale
