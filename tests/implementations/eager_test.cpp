// eager against what does not come from eager: sums written out by hand, and finite differences of the
// forward.
#include "implementations/eager/eager.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/float.h"
#include "implementations/conformance/check.h"
#include "implementations/eager/softmax_row.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::Data;

Case small(std::string feature, Problem problem) {
  problem.query_heads = 2;
  problem.kv_heads = 1;
  problem.head_dim = 3;
  problem.value_head_dim = 2;
  problem.dtype = DType::float32;
  return {.feature = std::move(feature),
          .problem = std::move(problem),
          .sequences = {{4, 6, 1}, {3, 2, 2}, {1, 1, 3}}};
}

std::vector<Case> small_cases() {
  std::vector<Case> cases{
      small("plain", {}),
      small("causal", {.mask = mask::causal()}),
      small("sinks", {.mask = mask::causal(), .sinks = true}),
      small("softcap", {.score = score::softcap(1.5)}),
      small("alibi",
            {.mask = mask::window(2, 1), .score = score::alibi(score::alibi_slopes(2)), .sinks = true}),
      small("general", {.score = Score::parse("select(k % 2 == 0, score, score * score / 4) - h").value()})};
  Case paged = small("paged", {.mask = mask::causal(), .sinks = true});
  paged.page_size = 2;
  cases.push_back(paged);
  return cases;
}

TEST(Eager, TwoKeysByHand) {
  // q.k = 2 and -1, scale 0.5: scores 1 and -0.5.
  const float q[] = {1, 2}, k[] = {2, 0, 1, -1}, v[] = {10, -2, 4, 6};
  float out[2], lse[1];
  const Problem problem{
      .query_heads = 1, .kv_heads = 1, .head_dim = 2, .dtype = DType::float32, .scale = 0.5f};
  const auto plan = eager_attention().plan(problem, Batch::packed({0, 1}, {0, 2}), Device::cpu()).value();
  const auto view = [](const float* data, std::initializer_list<std::int64_t> shape) {
    return TensorView::contiguous(data, DType::float32, shape);
  };
  ASSERT_TRUE(eager_attention()
                  .forward(*plan, {.q = view(q, {1, 1, 2}),
                                   .k = view(k, {2, 1, 2}),
                                   .v = view(v, {2, 1, 2}),
                                   .out = view(out, {1, 1, 2}),
                                   .lse = view(lse, {1, 1}),
                                   .sinks = {}})
                  .is_ok());
  const double a = std::exp(1.0), b = std::exp(-0.5);
  EXPECT_FLOAT_EQ(lse[0], static_cast<float>(std::log(a + b)));
  EXPECT_FLOAT_EQ(out[0], static_cast<float>((10 * a + 4 * b) / (a + b)));
  EXPECT_FLOAT_EQ(out[1], static_cast<float>((-2 * a + 6 * b) / (a + b)));
}

// sum(grad_out * out) in float64, as a function of the stored inputs.
double loss(const Problem& problem, const Data& data) {
  double sum = 0;
  const auto expected = conformance::expect(problem, data);
  for (std::int64_t i = 0; i < expected.out.values.rows; ++i) {
    std::vector<double> grad_out(static_cast<std::size_t>(problem.value_dim()));
    eager::read_row(data.grad_out.view, {i / problem.query_heads, i % problem.query_heads}, grad_out);
    sum += eager::dot(grad_out, expected.out.values.row(i));
  }
  return sum;
}

// d loss / d element by central differences.
double slope(const Problem& problem, const Data& data, const TensorView& view, std::int64_t at) {
  float& x = static_cast<float*>(view.data)[at];
  const float centre = x, step = 1.0f / 256;
  x = centre + step;
  const double above_x = x, above = loss(problem, data);
  x = centre - step;
  const double below_x = x, below = loss(problem, data);
  x = centre;
  return (above - below) / (above_x - below_x);
}

TEST(Eager, GradientsAreTheSlopesOfTheForward) {
  for (const Case& test : small_cases()) {
    SCOPED_TRACE(test.describe());
    const Problem& problem = test.problem;
    const Data data = conformance::run(eager_attention(), test, Background::zeros, Device::cpu()).value();
    const auto expect_slope = [&](const TensorView& input, std::int64_t input_at, const TensorView& gradient,
                                  std::int64_t gradient_at) {
      EXPECT_NEAR(static_cast<float*>(gradient.data)[gradient_at], slope(problem, data, input, input_at),
                  2e-4)
          << input_at;
    };
    for (std::int64_t i = 0; i < data.q.view.elements(); ++i)
      expect_slope(data.q.view, i, data.grad_q.view, i);
    for (int head = 0; problem.sinks && head < problem.query_heads; ++head)
      expect_slope(data.sinks.view, head, data.grad_sinks.view, head);
    std::int64_t row = 0;
    for (int b = 0; b < data.batch.sequences(); ++b) {
      for (std::int64_t position = 0; position < data.batch.kv_len(b); ++position, ++row) {
        const auto place = [&](const TensorView& view, std::int64_t column) {
          if (!data.batch.is_paged()) return row * view.stride[0] + column;
          const auto entry =
              static_cast<std::size_t>(b * data.batch.block_table_stride + position / data.batch.page_size);
          return data.batch.block_table[entry] * view.stride[0] +
                 position % data.batch.page_size * view.stride[1] + column;
        };
        for (int c = 0; c < problem.head_dim; ++c)
          expect_slope(data.k.view, place(data.k.view, c), data.grad_k.view, row * problem.head_dim + c);
        for (int c = 0; c < problem.value_dim(); ++c)
          expect_slope(data.v.view, place(data.v.view, c), data.grad_v.view, row * problem.value_dim() + c);
      }
    }
  }
}

}  // namespace
}  // namespace chorale
