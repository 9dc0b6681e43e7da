// The model against Transformers, its gradients against differences, and its contract. (Bits:
// invariance_test.cpp.)
#include "model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/fixture.h"
#include "model/log_prob.h"

namespace chorale {
namespace {

using test::Fixture;
using test::lively_parameters;
using test::Packed;
using test::random_tokens;
using test::same_bits;
using test::small_config;

// ---- Against Transformers ----

// Largest difference, relative to the largest expected value.
double relative_error(std::span<const float> actual, std::span<const float> expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double error = 0, scale = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error = std::max(error, std::abs(static_cast<double>(actual[i]) - expected[i]));
    scale = std::max(scale, std::abs(static_cast<double>(expected[i])));
  }
  return error / scale;
}
std::vector<float> all_logits(const nlohmann::json& sequences) {
  std::vector<float> values;
  for (const auto& sequence : sequences)
    for (const auto& value : sequence) values.push_back(value.get<float>());
  return values;
}

class AgainstTransformers : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Variants, AgainstTransformers, ::testing::Values("tied", "untied"));

TEST_P(AgainstTransformers, LogitsInFloat32) {
  const Fixture fixture(GetParam());
  const Packed packed(fixture.sequences);
  const Model model = Model::create(fixture.folder.config, fixture.folder.parameters).value();
  for (const char* implementation : {"flash_attention_2", "eager"}) {
    auto attention = packed.attention(model.config(), implementation);
    const Tensor logits = model.forward(packed.inputs(), attention).value();
    EXPECT_LT(relative_error(logits.as<float>(), all_logits(fixture.expected["logits"])), 2e-6)
        << implementation;
  }
}

// In bfloat16 both round at the same places. They sum in other orders, so a value that lies between two
// bfloat16 numbers could go either way, which happens once in some thousand values; everything else is the
// same. The float32 logits are much further away: the comparison sees rounding. An implementation that rounds
// probabilities on the way, as matrix instructions want, is further away by as much.
TEST_P(AgainstTransformers, LogitsInBfloat16) {
  const Fixture fixture(GetParam());
  const Packed packed(fixture.sequences);
  ModelConfig config = fixture.folder.config;
  config.compute_dtype = DType::bfloat16;
  const Model model = Model::create(config, fixture.folder.parameters).value();
  const std::vector<float> expected = all_logits(fixture.expected["bfloat16_logits"]);
  for (const auto& [implementation, tolerance] :
       {std::pair("eager", 1e-3), std::pair("flash_attention_2", 0.03)}) {
    auto attention = packed.attention(config, implementation);
    const Tensor logits = model.forward(packed.inputs(), attention).value();
    EXPECT_LT(relative_error(logits.as<float>(), expected), tolerance) << implementation;
  }
  EXPECT_GT(relative_error(all_logits(fixture.expected["logits"]), expected), 1e-2);
}

// d (sum of next-token losses) / d parameter: the gradients that autograd gave.
TEST_P(AgainstTransformers, LossAndGradients) {
  const Fixture fixture(GetParam());
  const Packed packed(fixture.sequences);
  const ModelConfig& config = fixture.folder.config;
  const Model model = Model::create(config, fixture.folder.parameters).value();
  auto attention = packed.attention(config);
  std::shared_ptr<Activations> activations;
  const Tensor logits = model.forward(packed.inputs(), attention, &activations).value();
  const Tensor grad_logits = Tensor::zeros(DType::float32, {logits.shape(0), logits.shape(1)});
  double loss = 0;
  std::int64_t row = 0;
  for (const auto& sequence : fixture.sequences)
    for (std::size_t i = 0; i < sequence.size(); ++i, ++row) {
      if (i + 1 == sequence.size()) continue;
      const float* row_logits = logits.as<float>().data() + row * config.vocab_size;
      loss -= token_log_prob(row_logits, config.vocab_size, 1.0f, sequence[i + 1]);
      token_log_prob_backward(row_logits, config.vocab_size, 1.0f, sequence[i + 1], -1.0f,
                              grad_logits.as<float>().data() + row * config.vocab_size);
    }
  EXPECT_NEAR(loss, fixture.expected["loss"].get<double>(), 1e-5 * loss);
  ParameterSet gradients = zero_parameters(config);
  ASSERT_TRUE(model.backward(*activations, grad_logits, attention, gradients).is_ok());
  std::size_t compared = 0;
  for (const NamedTensor& gradient : gradients)
    if (fixture.expected["gradients"].contains(gradient.name)) {
      ++compared;
      EXPECT_LT(relative_error(gradient.value.as<float>(),
                               fixture.expected["gradients"][gradient.name].get<std::vector<float>>()),
                1e-5)
          << gradient.name;
    }
  EXPECT_EQ(compared, fixture.expected["gradients"].size());
}

// ---- Gradients by differences ----

// Some function of the logits with a gradient that is easy to write: sum of weight[row][j] * logit[row][j].
float probe_weight(std::int64_t row, std::int64_t column) {
  return std::sin(static_cast<float>(row * 31 + column * 7));
}

ParameterSet probe_gradients(const ModelConfig& config, const ParameterSet& parameters,
                             const Packed& packed) {
  const Model model = Model::create(config, parameters).value();
  auto attention = packed.attention(config);
  std::shared_ptr<Activations> activations;
  const Tensor logits = model.forward(packed.inputs(), attention, &activations).value();
  const Tensor grad_logits = Tensor::zeros(DType::float32, {logits.shape(0), logits.shape(1)});
  for (std::int64_t i = 0; i < logits.elements(); ++i)
    grad_logits.as<float>()[i] = probe_weight(i / config.vocab_size, i % config.vocab_size);
  ParameterSet gradients = zero_parameters(config);
  EXPECT_TRUE(model.backward(*activations, grad_logits, attention, gradients).is_ok());
  return gradients;
}

class Gradients : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(TiedOrNot, Gradients, ::testing::Bool());

// Along a random direction in each parameter, the loss's central difference is the gradient's component.
TEST_P(Gradients, AgreeWithDifferences) {
  const ModelConfig config = small_config(DType::float32, GetParam());
  Packed packed({random_tokens(9, config.vocab_size, 1), random_tokens(5, config.vocab_size, 2)});
  packed.logit_rows = {0, 3, 8, 10, 13};
  const ParameterSet parameters = lively_parameters(config, 3);
  auto attention = packed.attention(config);
  const auto loss = [&](const ParameterSet& at) {
    const Tensor logits = Model::create(config, at).value().forward(packed.inputs(), attention).value();
    double sum = 0;
    for (std::int64_t i = 0; i < logits.elements(); ++i)
      sum += static_cast<double>(probe_weight(i / config.vocab_size, i % config.vocab_size)) *
             logits.as<float>()[i];
    return sum;
  };
  const ParameterSet gradients = probe_gradients(config, parameters, packed);
  const ParameterSet directions = random_parameters(config, 17);
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const std::span<const float> direction = directions[p].value.as<float>();
    double component = 0, length = 0;
    for (std::size_t i = 0; i < direction.size(); ++i) {
      component += static_cast<double>(gradients[p].value.as<float>()[i]) * direction[i];
      length += std::pow(direction[i], 2.0);
    }
    const double step = 2e-3 / std::sqrt(length / static_cast<double>(direction.size()));
    const auto moved = [&](double by) {
      ParameterSet copy = parameters;
      copy[p].value = parameters[p].value.clone();
      for (std::size_t i = 0; i < direction.size(); ++i)
        copy[p].value.as<float>()[i] += static_cast<float>(by * direction[i]);
      return loss(copy);
    };
    const double difference = (moved(step) - moved(-step)) / (2 * step);
    EXPECT_NEAR(component, difference, 4e-3 * std::abs(difference) + 2e-3 * std::sqrt(length))
        << parameters[p].name;
  }
}

// In bfloat16 rounding counts as the identity: each parameter's gradient is that of float32 up to some
// roundings.
TEST_P(Gradients, OfBfloat16AreNearThoseOfFloat32) {
  const ModelConfig exact = small_config(DType::float32, GetParam()),
                    rounded = small_config(DType::bfloat16, GetParam());
  const Packed packed({random_tokens(9, exact.vocab_size, 1), random_tokens(5, exact.vocab_size, 2)});
  const ParameterSet parameters = lively_parameters(exact, 3);
  const ParameterSet expected = probe_gradients(exact, parameters, packed),
                     actual = probe_gradients(rounded, parameters, packed);
  for (std::size_t p = 0; p < expected.size(); ++p) {
    double difference = 0, length = 0;
    for (std::size_t i = 0; i < expected[p].value.as<float>().size(); ++i) {
      difference += std::pow(actual[p].value.as<float>()[i] - expected[p].value.as<float>()[i], 2.0);
      length += std::pow(expected[p].value.as<float>()[i], 2.0);
    }
    EXPECT_LT(std::sqrt(difference / length), 0.05) << expected[p].name;
    EXPECT_GT(difference, 0) << expected[p].name << " was not rounded";
  }
}

// ---- Contract ----

TEST(Model, ObserverSeesEveryOperationInOrder) {
  struct Names : Observer {
    void record(int layer, std::string_view operation, const TensorView& output) override {
      seen.push_back(std::to_string(layer) + " " + std::string(operation));
      EXPECT_EQ(output.shape[0], operation == "logits" ? 1 : 4);
    }
    std::vector<std::string> seen;
  } names;
  const ModelConfig config = small_config();
  Packed packed({{1, 2, 3, 4}});
  packed.logit_rows = {3};
  auto attention = packed.attention(config);
  ASSERT_TRUE(Model::create(config, lively_parameters(config, 1))
                  .value()
                  .forward(packed.inputs(), attention, nullptr, &names)
                  .has_value());
  std::vector<std::string> expected{"-1 embed"};
  for (const char* layer : {"0 ", "1 "})
    for (const char* operation :
         {"input_norm", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rotary", "k_rotary", "attention",
          "o_proj", "residual_1", "post_norm", "gate_proj", "up_proj", "swiglu", "down_proj", "residual_2"})
      expected.push_back(std::string(layer) + operation);
  expected.insert(expected.end(), {"2 norm", "2 logits"});
  EXPECT_EQ(names.seen, expected);
}

TEST(Model, RefusesInputsThatDoNotFit) {
  const ModelConfig config = small_config();
  const Model model = Model::create(config, random_parameters(config, 1)).value();
  const Packed packed({{1, 2, 3}});
  auto attention = packed.attention(config);
  const auto refused = [&](auto change) {
    Packed wrong = packed;
    change(wrong);
    return model.forward(wrong.inputs(), attention).status().message();
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(refused([](Packed& p) { p.tokens[1] = 29; }),
              HasSubstr("token 29 of row 1: must be from 0 to 28"));
  EXPECT_THAT(refused([](Packed& p) { p.tokens[2] = -1; }), HasSubstr("token -1 of row 2"));
  EXPECT_THAT(refused([](Packed& p) { p.positions[0] = 512; }),
              HasSubstr("position 512 of row 0: must be from 0 to 511"));
  EXPECT_THAT(refused([](Packed& p) { p.positions.pop_back(); }), HasSubstr("2 positions for 3 tokens"));
  EXPECT_THAT(refused([](Packed& p) { p.logit_rows = {1, 1}; }), HasSubstr("logit row 1 after 1"));
  EXPECT_THAT(refused([](Packed& p) { p.logit_rows = {3}; }), HasSubstr("must ascend and be below 3 rows"));
}

TEST(Model, RefusesParametersThatDoNotFit) {
  const ModelConfig config = small_config();
  ParameterSet parameters = random_parameters(config, 1);
  Model model = Model::create(config, parameters).value();
  parameters[3].value = Tensor::zeros(DType::float32, {24, 23});
  EXPECT_THAT(model.set_parameters(parameters).message(),
              ::testing::AllOf(::testing::HasSubstr("model.layers.0.self_attn.v_proj.weight"),
                               ::testing::HasSubstr("[24, 24]")));
  parameters.pop_back();
  EXPECT_THAT(model.set_parameters(parameters).message(),
              ::testing::HasSubstr("24 tensors, but the config has 25"));
  EXPECT_FALSE(Model::create(small_config(DType::float32, true), random_parameters(config, 1)).has_value())
      << "a tied model has no lm_head";
}

TEST(Model, BackwardWantsItsOwnActivations) {
  const ModelConfig config = small_config();
  Model model = Model::create(config, random_parameters(config, 1)).value();
  const Packed packed({{1, 2, 3}});
  auto attention = packed.attention(config);
  std::shared_ptr<Activations> activations;
  const Tensor logits = model.forward(packed.inputs(), attention, &activations).value();
  ParameterSet gradients = zero_parameters(config);
  EXPECT_THAT(model.backward(*activations, logits.view().slice(0, 0, 2), attention, gradients).message(),
              ::testing::HasSubstr("must be float32 [3, 29]"));
  ASSERT_TRUE(model.backward(*activations, logits, attention, gradients).is_ok());
  ASSERT_TRUE(model.set_parameters(random_parameters(config, 2)).is_ok());
  EXPECT_THAT(model.backward(*activations, logits, attention, gradients).message(),
              ::testing::HasSubstr("must come from this model"));
}

TEST(Model, NoRowsAndNoLogits) {
  const ModelConfig config = small_config();
  const Model model = Model::create(config, random_parameters(config, 1)).value();
  Packed none({});
  auto no_attention = none.attention(config);
  EXPECT_EQ(model.forward(none.inputs(), no_attention).value().elements(), 0);
  Packed packed({{1, 2, 3}});
  packed.logit_rows.clear();
  auto attention = packed.attention(config);
  std::shared_ptr<Activations> activations;
  const Tensor logits = model.forward(packed.inputs(), attention, &activations).value();
  EXPECT_EQ(logits.shape(0), 0);
  ParameterSet gradients = zero_parameters(config);
  ASSERT_TRUE(model.backward(*activations, logits, attention, gradients).is_ok());
  for (const NamedTensor& gradient : gradients)
    EXPECT_THAT(gradient.value.as<float>(), ::testing::Each(0.0f)) << gradient.name;
}

TEST(Model, RandomParametersAreNormal) {
  const ModelConfig config = small_config();
  const ParameterSet parameters = random_parameters(config, 1);
  double sum = 0, square = 0, fourth = 0, count = 0;
  for (const NamedTensor& parameter : parameters)
    for (const float value : parameter.value.as<float>()) {
      if (parameter.value.view().rank == 1) {
        EXPECT_EQ(value, 1.0f);
        continue;
      }
      const double x = value / 0.02;
      sum += x, square += x * x, fourth += x * x * x * x, ++count;
    }
  EXPECT_NEAR(sum / count, 0, 0.03);
  EXPECT_NEAR(square / count, 1, 0.05);
  EXPECT_NEAR(fourth / count, 3, 0.4);
  EXPECT_TRUE(same_bits(parameters[0].value.as<float>(), random_parameters(config, 1)[0].value.as<float>()));
  EXPECT_FALSE(same_bits(parameters[0].value.as<float>(), random_parameters(config, 2)[0].value.as<float>()));
}

}  // namespace
}  // namespace chorale
