// Each operation against its formula in float64, and its gradient against differences of that formula.
#include "model/operations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "base/float.h"
#include "model/linear.h"
#include "model/log_prob.h"

namespace chorale {
namespace {

using Values = std::vector<double>;

// Reproducible values in (-2, 2).
std::vector<float> values(std::size_t count, unsigned seed) {
  std::vector<float> x(count);
  for (float& value : x) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / static_cast<float>(1 << 22) - 2.0f;
  }
  return x;
}
Values wide(const std::vector<float>& x) { return {x.begin(), x.end()}; }
float rounded(float x) { return to_float(from_float<bfloat16>(x)); }

void expect_near(const std::vector<float>& actual, const Values& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(actual[i], expected[i], tolerance * (1 + std::abs(expected[i]))) << "element " << i;
}
// d sum(grad_y * f(x)) / dx by central differences in float64.
Values differences(const std::function<Values(const Values&)>& f, const Values& x,
                   const std::vector<float>& grad_y) {
  Values grad(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double step = 1e-5;
    Values up = x, down = x;
    up[i] += step, down[i] -= step;
    const Values high = f(up), low = f(down);
    for (std::size_t j = 0; j < high.size(); ++j) grad[i] += grad_y[j] * (high[j] - low[j]) / (2 * step);
  }
  return grad;
}

// Sizes below, at and above a vector and the operations' chunks.
class Sizes : public ::testing::TestWithParam<int> {
 protected:
  std::size_t n() const { return static_cast<std::size_t>(GetParam()); }
  std::int64_t length() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Operations, Sizes, ::testing::Values(2, 12, 16, 18, 256, 270, 600));

Values rms_norm(const Values& x, const Values& weight, double epsilon) {
  double square = 0;
  for (const double value : x) square += value * value;
  const double factor = 1 / std::sqrt(square / static_cast<double>(x.size()) + epsilon);
  Values y;
  for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * factor * weight[i]);
  return y;
}

TEST_P(Sizes, RmsNorm) {
  const float epsilon = 0.01f;
  const std::vector<float> x = values(n(), 1), weight = values(n(), 2), grad = values(n(), 3);
  std::vector<float> y(n()), grad_x(n()), grad_weight(n(), 1.0f);
  ops::rms_norm(x.data(), weight.data(), length(), epsilon, DType::float32, y.data());
  expect_near(y, rms_norm(wide(x), wide(weight), epsilon), 1e-6);
  ops::rms_norm_backward(x.data(), weight.data(), length(), epsilon, grad.data(), grad_x.data());
  expect_near(
      grad_x,
      differences([&](const Values& at) { return rms_norm(at, wide(weight), epsilon); }, wide(x), grad),
      2e-6);
  ops::rms_norm_backward_weight(x.data(), length(),
                                ops::inverse_root_mean_square(x.data(), length(), epsilon), DType::float32,
                                grad.data(), grad_weight.data());
  Values expected =
      differences([&](const Values& at) { return rms_norm(wide(x), at, epsilon); }, wide(weight), grad);
  for (double& value : expected) value += 1;  // it adds to what is there
  expect_near(grad_weight, expected, 2e-6);
}

Values rotate(const Values& x, const std::vector<float>& cosines, const std::vector<float>& sines) {
  const std::size_t half = x.size() / 2;
  Values y(x.size());
  for (std::size_t i = 0; i < half; ++i) {
    y[i] = x[i] * cosines[i] - x[i + half] * sines[i];
    y[i + half] = x[i + half] * cosines[i] + x[i] * sines[i];
  }
  return y;
}

TEST_P(Sizes, Rotary) {
  const std::size_t half = n() / 2;
  std::vector<double> frequencies;
  for (std::size_t i = 0; i < half; ++i)
    frequencies.push_back(std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(n())));
  std::vector<float> cosines(half), sines(half);
  ops::rotary_angles(1234567, frequencies.data(), static_cast<std::int64_t>(half), DType::float32,
                     cosines.data(), sines.data());
  for (std::size_t i = 0; i < half; ++i) {
    EXPECT_EQ(cosines[i], static_cast<float>(std::cos(1234567 * frequencies[i])));
    EXPECT_EQ(sines[i], static_cast<float>(std::sin(1234567 * frequencies[i])));
  }
  const std::vector<float> x = values(n(), 1), grad = values(n(), 3);
  std::vector<float> y(n()), grad_x(n());
  ops::rotate(x.data(), cosines.data(), sines.data(), length(), DType::float32, y.data());
  expect_near(y, rotate(wide(x), cosines, sines), 1e-6);
  ops::rotate_backward(grad.data(), cosines.data(), sines.data(), length(), grad_x.data());
  expect_near(grad_x,
              differences([&](const Values& at) { return rotate(at, cosines, sines); }, wide(x), grad), 2e-6);
}

Values swiglu(const Values& gate, const Values& up) {
  Values y;
  for (std::size_t i = 0; i < gate.size(); ++i) y.push_back(gate[i] / (1 + std::exp(-gate[i])) * up[i]);
  return y;
}

TEST_P(Sizes, SwiGlu) {
  const std::vector<float> gate = values(n(), 1), up = values(n(), 2), grad = values(n(), 3);
  std::vector<float> y(n()), grad_gate(n()), grad_up(n());
  ops::swiglu(gate.data(), up.data(), length(), DType::float32, y.data());
  expect_near(y, swiglu(wide(gate), wide(up)), 1e-6);
  ops::swiglu_backward(gate.data(), up.data(), length(), DType::float32, grad.data(), grad_gate.data(),
                       grad_up.data());
  expect_near(grad_gate,
              differences([&](const Values& at) { return swiglu(at, wide(up)); }, wide(gate), grad), 2e-6);
  expect_near(grad_up, differences([&](const Values& at) { return swiglu(wide(gate), at); }, wide(up), grad),
              2e-6);
}

TEST(Operations, SwiGluOfLargeValues) {
  const std::vector<float> gate{-1e30f, -200.0f, -90.0f, 0.0f, 90.0f, 1e30f}, up(6, 1.0f), grad(6, 1.0f);
  std::vector<float> y(6), grad_gate(6), grad_up(6);
  ops::swiglu(gate.data(), up.data(), 6, DType::float32, y.data());
  ops::swiglu_backward(gate.data(), up.data(), 6, DType::float32, grad.data(), grad_gate.data(),
                       grad_up.data());
  const std::vector<float> expected{0, 0, 0, 0, 90, 1e30f}, slope{0, 0, 0, 0.5f, 1, 1};
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(y[i], expected[i], 1e-6 * (1 + expected[i]));
    EXPECT_NEAR(grad_gate[i], slope[i], 1e-6);
  }
}

// Bfloat16 rounds where a bfloat16 model of Transformers rounds.
TEST_P(Sizes, RoundingPlacesOfBfloat16) {
  std::vector<float> x = values(n(), 1), weight = values(n(), 2), y(n());
  ops::round(DType::bfloat16, x.data(), length());
  ops::round(DType::bfloat16, weight.data(), length());
  for (const float value : x) EXPECT_EQ(value, rounded(value));

  std::vector<float> normed(n());
  ops::rms_norm(x.data(), std::vector<float>(n(), 1.0f).data(), length(), 1e-6f, DType::float32,
                normed.data());
  ops::rms_norm(x.data(), weight.data(), length(), 1e-6f, DType::bfloat16, y.data());
  for (std::size_t i = 0; i < n(); ++i) EXPECT_EQ(y[i], rounded(rounded(normed[i]) * weight[i]));

  ops::swiglu(x.data(), std::vector<float>(n(), 1.0f).data(), length(), DType::float32, normed.data());
  ops::swiglu(x.data(), weight.data(), length(), DType::bfloat16, y.data());
  for (std::size_t i = 0; i < n(); ++i) EXPECT_EQ(y[i], rounded(rounded(normed[i]) * weight[i]));

  const std::size_t half = n() / 2;
  ops::rotate(x.data(), weight.data(), weight.data() + half, length(), DType::bfloat16, y.data());
  for (std::size_t i = 0; i < half; ++i) {
    EXPECT_EQ(y[i], rounded(rounded(x[i] * weight[i]) - rounded(x[i + half] * weight[i + half])));
    EXPECT_EQ(y[i + half], rounded(rounded(x[i + half] * weight[i]) + rounded(x[i] * weight[i + half])));
  }
}

TEST_P(Sizes, LogProbability) {
  const std::vector<float> logits = values(n(), 4);
  const float temperature = 0.7f;
  const auto formula = [&](const Values& at, int token) {
    double sum = 0;
    for (const double value : at) sum += std::exp(value / temperature);
    return Values{at[static_cast<std::size_t>(token)] / temperature - std::log(sum)};
  };
  for (const int token : {0, GetParam() - 1}) {
    EXPECT_NEAR(token_log_prob(logits.data(), length(), temperature, token), formula(wide(logits), token)[0],
                3e-6);
    std::vector<float> grad(n());
    token_log_prob_backward(logits.data(), length(), temperature, token, 1.5f, grad.data());
    expect_near(grad, differences([&](const Values& at) { return formula(at, token); }, wide(logits), {1.5f}),
                2e-6);
  }
}

TEST(LogProb, LogitsOfAnySize) {
  const std::vector<float> logits{3e38f, -3e38f, 3e38f};
  EXPECT_FLOAT_EQ(token_log_prob(logits.data(), 3, 1.0f, 0), -std::log(2.0f));
  EXPECT_EQ(token_log_prob(logits.data(), 3, 1.0f, 1), -std::numeric_limits<float>::infinity())
      << "beyond float32";
  const float one = 5.0f;
  EXPECT_EQ(token_log_prob(&one, 1, 1.0f, 0), 0.0f) << "the only token";
}

// ---- Linear ----

RowBuffer make_rows(std::int64_t rows, std::int64_t columns, unsigned seed) {
  const RowBuffer buffer(rows, columns);
  const std::vector<float> x = values(static_cast<std::size_t>(rows * columns), seed);
  for (std::int64_t row = 0; row < rows; ++row) std::copy_n(x.data() + row * columns, columns, buffer[row]);
  return buffer;
}
Tensor make_weight(std::int64_t outputs, std::int64_t inputs) {
  const Tensor weight = Tensor::zeros(DType::float32, {outputs, inputs});
  const std::vector<float> x = values(static_cast<std::size_t>(outputs * inputs), 77);
  std::copy(x.begin(), x.end(), weight.as<float>().begin());
  return weight;
}

TEST(Linear, ForwardAndBackwardAreTheMatrixProducts) {
  const std::int64_t rows = 37, inputs = 21, outputs = 50;
  const Tensor weight = make_weight(outputs, inputs);
  const Linear linear(weight, DType::float32, 2);
  const RowBuffer x = make_rows(rows, inputs, 1), grad_y = make_rows(rows, outputs, 2), y(rows, outputs),
                  grad_x(rows, inputs);
  linear.forward(x, y, {0, rows}, DType::float32, 2);
  linear.backward(grad_y, grad_x, {0, rows}, 2);
  const float* w = weight.as<float>().data();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      double sum = 0;
      for (std::int64_t i = 0; i < inputs; ++i) sum += static_cast<double>(x[row][i]) * w[o * inputs + i];
      EXPECT_NEAR(y[row][o], sum, 2e-5);
    }
    for (std::int64_t i = 0; i < inputs; ++i) {
      double sum = 0;
      for (std::int64_t o = 0; o < outputs; ++o)
        sum += static_cast<double>(grad_y[row][o]) * w[o * inputs + i];
      EXPECT_NEAR(grad_x[row][i], sum, 4e-5);
    }
  }
}

// One chain of fused multiply-adds over rows ascending, however many threads there are.
TEST(Linear, WeightGradientIsOneChainOverRows) {
  const std::int64_t rows = 600, inputs = 21, outputs = 50;
  const RowBuffer x = make_rows(rows, inputs, 1), grad_y = make_rows(rows, outputs, 2);
  const Tensor gradient = make_weight(outputs, inputs), expected = gradient.clone();
  float* sum = expected.as<float>().data();
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t o = 0; o < outputs; ++o)
      for (std::int64_t i = 0; i < inputs; ++i)
        sum[o * inputs + i] = std::fma(grad_y[row][o], x[row][i], sum[o * inputs + i]);
  Linear::backward_weight(grad_y, x, DType::float32, gradient, 2);
  EXPECT_EQ(std::memcmp(gradient.view().data, expected.view().data, gradient.bytes()), 0);
}

// Each row's bits are those of the row computed alone.
TEST(Linear, RowsDoNotDependOnTheirNumber) {
  const std::int64_t rows = 131, inputs = 70, outputs = 90;
  for (const DType type : {DType::float32, DType::bfloat16}) {
    const Linear linear(make_weight(outputs, inputs), type, 1);
    const RowBuffer x = make_rows(rows, inputs, 5), grad_y = make_rows(rows, outputs, 6);
    const RowBuffer y(rows, outputs), grad_x(rows, inputs), one_y(rows, outputs), one_grad(rows, inputs);
    linear.forward(x, y, {0, rows}, type, 2);
    linear.backward(grad_y, grad_x, {0, rows}, 2);
    for (std::int64_t row = 0; row < rows; ++row) {
      linear.forward(x, one_y, {row, row + 1}, type, 1);
      linear.backward(grad_y, one_grad, {row, row + 1}, 1);
      ASSERT_EQ(std::memcmp(y[row], one_y[row], outputs * sizeof(float)), 0) << "row " << row;
      ASSERT_EQ(std::memcmp(grad_x[row], one_grad[row], inputs * sizeof(float)), 0) << "row " << row;
    }
  }
}

}  // namespace
}  // namespace chorale
