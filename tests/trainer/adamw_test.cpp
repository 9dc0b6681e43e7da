#include "trainer/adamw.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "trainer/same_bits.h"
#include "trainer/trainer.h"

namespace chorale {
namespace {

using ::testing::HasSubstr;

ModelConfig small_model() {
  return {.vocab_size = 300,
          .hidden_size = 64,
          .intermediate_size = 48,
          .num_hidden_layers = 1,
          .num_attention_heads = 2,
          .num_key_value_heads = 1,
          .head_dim = 16,
          .max_position_embeddings = 32};
}

ParameterSet random_set(const ModelConfig& config, std::uint32_t seed, float deviation) {
  ParameterSet set = zero_parameters(config);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (NamedTensor& tensor : set)
    for (float& value : tensor.value.as<float>()) value = normal(random);
  return set;
}

// The formula of the header, in float64, all parameters in one row.
struct PlainAdamW {
  AdamWConfig config;
  std::vector<double> w, m, v;
  std::vector<bool> decays;
  int t = 0;

  PlainAdamW(const AdamWConfig& settings, const ParameterSet& parameters) : config(settings) {
    for (const NamedTensor& tensor : parameters)
      for (const float value : tensor.value.as<float>()) {
        w.push_back(value);
        decays.push_back(tensor.value.view().rank > 1);
      }
    m.resize(w.size()), v.resize(w.size());
  }
  double step(const ParameterSet& gradients) {
    std::vector<double> g;
    for (const NamedTensor& tensor : gradients)
      g.insert(g.end(), tensor.value.as<float>().begin(), tensor.value.as<float>().end());
    double norm = 0;
    for (const double x : g) norm += x * x;
    norm = std::sqrt(norm);
    const double factor = config.max_grad_norm > 0 ? std::min(1.0, config.max_grad_norm / norm) : 1.0;
    ++t;
    const double rate = config.learning_rate *
                        std::min(1.0, config.warmup_steps == 0 ? 1.0 : double(t) / config.warmup_steps);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double gradient = g[i] * factor;
      m[i] = config.beta1 * m[i] + (1 - config.beta1) * gradient;
      v[i] = config.beta2 * v[i] + (1 - config.beta2) * gradient * gradient;
      const double corrected_m = m[i] / (1 - std::pow(config.beta1, t)),
                   corrected_v = v[i] / (1 - std::pow(config.beta2, t));
      w[i] -= rate * (corrected_m / (std::sqrt(corrected_v) + config.epsilon) +
                      (decays[i] ? config.weight_decay * w[i] : 0));
    }
    return norm;
  }
};

TEST(AdamW, AgreesWithAPlainDoubleImplementation) {
  const AdamWConfig config{.learning_rate = 0.01f,
                           .warmup_steps = 3,
                           .beta1 = 0.85f,
                           .beta2 = 0.97f,
                           .weight_decay = 0.1f,
                           .max_grad_norm = 2};
  ParameterSet parameters = random_set(small_model(), 1, 0.5f);
  PlainAdamW plain(config, parameters);
  AdamW optimizer = AdamW::create(config, small_model()).value();
  for (std::uint32_t step = 0; step < 6; ++step) {
    // Every other gradient is below the clipping norm.
    const ParameterSet gradients = random_set(small_model(), 10 + step, step % 2 == 0 ? 0.1f : 1e-3f);
    const double expected_norm = plain.step(gradients);
    const double norm = optimizer.step(parameters, gradients).value();
    EXPECT_NEAR(norm, expected_norm, 1e-9 * expected_norm);
    EXPECT_EQ(expected_norm > 2, step % 2 == 0);
  }
  std::size_t index = 0;
  for (const NamedTensor& tensor : parameters)
    for (const float value : tensor.value.as<float>()) {
      ASSERT_NEAR(value, plain.w[index], 1e-6) << tensor.name << ", parameter " << index;
      ++index;
    }
  EXPECT_EQ(optimizer.steps(), 6);
}

TEST(AdamW, BitsDoNotDependOnThreads) {
  const AdamWConfig config{.learning_rate = 0.01f, .max_grad_norm = 0.5f};
  std::vector<ParameterSet> results;
  for (const int threads : {1, 2, 5}) {
    ParameterSet parameters = random_set(small_model(), 1, 0.5f);
    AdamW optimizer = AdamW::create(config, small_model()).value();
    for (std::uint32_t step = 0; step < 3; ++step)
      ASSERT_TRUE(optimizer.step(parameters, random_set(small_model(), 10 + step, 0.1f), threads));
    results.push_back(std::move(parameters));
  }
  EXPECT_TRUE(same_bits(results[0], results[1]));
  EXPECT_TRUE(same_bits(results[0], results[2]));
  EXPECT_FALSE(same_bits(results[0], random_set(small_model(), 1, 0.5f)))
      << "the steps must have changed something";
}

TEST(AdamW, LearningRateWarmsUpLinearly) {
  const AdamWConfig config{.learning_rate = 0.5f, .warmup_steps = 4};
  EXPECT_FLOAT_EQ(config.rate(1), 0.125f);
  EXPECT_FLOAT_EQ(config.rate(3), 0.375f);
  EXPECT_FLOAT_EQ(config.rate(4), 0.5f);
  EXPECT_FLOAT_EQ(config.rate(100), 0.5f);
  EXPECT_FLOAT_EQ((AdamWConfig{.learning_rate = 0.5f}.rate(1)), 0.5f);
}

TEST(AdamW, RefusesAGradientThatIsNotFiniteAndChangesNothing) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    ParameterSet parameters = random_set(small_model(), 1, 0.5f);
    const ParameterSet before = clone(parameters);
    ParameterSet gradients = random_set(small_model(), 2, 0.1f);
    gradients.back().value.as<float>().back() = bad;
    AdamW optimizer = AdamW::create({}, small_model()).value();
    const auto refused = optimizer.step(parameters, gradients);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.status().message(), HasSubstr("must be finite"));
    EXPECT_TRUE(same_bits(parameters, before));
    EXPECT_EQ(optimizer.steps(), 0);
  }
}

TEST(AdamW, RefusesSettingsThatCannotWork) {
  const auto refusal = [](AdamWConfig config) {
    return AdamW::create(config, small_model()).status().message();
  };
  EXPECT_THAT(refusal({.learning_rate = 0}), HasSubstr("learning_rate 0"));
  EXPECT_THAT(refusal({.learning_rate = std::nanf("")}), HasSubstr("learning_rate nan"));
  EXPECT_THAT(refusal({.warmup_steps = -1}), HasSubstr("warmup_steps -1"));
  EXPECT_THAT(refusal({.beta1 = 1}), HasSubstr("beta1 1"));
  EXPECT_THAT(refusal({.beta2 = -0.5f}), HasSubstr("beta2 -0.5"));
  EXPECT_THAT(refusal({.epsilon = 0}), HasSubstr("epsilon 0"));
  EXPECT_THAT(refusal({.weight_decay = -1}), HasSubstr("weight_decay -1"));
  EXPECT_THAT(refusal({.max_grad_norm = -1}), HasSubstr("max_grad_norm -1"));
}

TEST(AdamW, RefusesTheGradientsOfAnotherModel) {
  ModelConfig other = small_model();
  other.hidden_size = 80;
  ParameterSet parameters = random_set(small_model(), 1, 0.5f);
  AdamW optimizer = AdamW::create({}, small_model()).value();
  EXPECT_FALSE(optimizer.step(parameters, zero_parameters(other)));
  EXPECT_FALSE(optimizer.restore(1, zero_parameters(other), zero_parameters(small_model())).is_ok());
}

}  // namespace
}  // namespace chorale
