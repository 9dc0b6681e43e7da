// The model against Transformers, and against itself: rows have the same bits however they are computed.
#include "model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "base/float.h"
#include "chorale/kv_cache.h"
#include "model/fixture.h"
#include "model/log_prob.h"

namespace chorale {
namespace {

using test::Fixture;
using test::lively_parameters;
using test::Packed;
using test::random_tokens;
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
  const Model model = Model::create(config, parameters).value();
  std::shared_ptr<Activations> activations;
  const Tensor logits = model.forward(packed.inputs(), attention, &activations).value();
  const Tensor grad_logits = Tensor::zeros(DType::float32, {logits.shape(0), logits.shape(1)});
  for (std::int64_t i = 0; i < logits.elements(); ++i)
    grad_logits.as<float>()[i] = probe_weight(i / config.vocab_size, i % config.vocab_size);
  ParameterSet gradients = zero_parameters(config);
  ASSERT_TRUE(model.backward(*activations, grad_logits, attention, gradients).is_ok());

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

// ---- Rows have the same bits however they are computed ----

// Every recorded output, by layer and operation, as the bytes of each row.
class Recording : public Observer {
 public:
  void record(int layer, std::string_view operation, const TensorView& output) override {
    auto& rows = rows_[{layer, std::string(operation)}];
    const std::int64_t count = output.shape[0];
    for (std::int64_t row = 0; row < count; ++row) {
      const TensorView one = output.slice(0, row, row + 1);
      std::vector<float> values;
      for (std::int64_t i = 0; i < (one.rank > 1 ? one.shape[1] : 1); ++i)
        for (std::int64_t j = 0; j < (one.rank > 2 ? one.shape[2] : 1); ++j)
          values.push_back(
              load_element(one.data, one.dtype, i * one.stride[1] + (one.rank > 2 ? j * one.stride[2] : 0)));
      rows.push_back(std::move(values));
    }
  }
  const auto& rows() const { return rows_; }

 private:
  std::map<std::pair<int, std::string>, std::vector<std::vector<float>>> rows_;
};

bool same_bits(std::span<const float> x, std::span<const float> y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size_bytes()) == 0;
}
// Rows of `part` are rows [first, ...) of `whole`, in every operation.
void expect_rows(const Recording& part, const Recording& whole, std::size_t first) {
  ASSERT_EQ(part.rows().size(), whole.rows().size());
  for (const auto& [key, rows] : part.rows())
    for (std::size_t i = 0; i < rows.size(); ++i)
      ASSERT_TRUE(same_bits(rows[i], whole.rows().at(key).at(first + i)))
          << "layer " << key.first << " " << key.second << " row " << first + i;
}

// A generator's attention: keys and values go into pages first.
class PagedAttention : public LayerAttention {
 public:
  PagedAttention(const ModelConfig& config, int page_size,
                 const std::string& implementation = "flash_attention_2")
      : cache_(make_cache(config, page_size)),
        sequence_(cache_.add()),
        attention_(Attention::create(config.problem(), implementation, Device::cpu(),
                                     {Phase::prefill, Phase::decode})
                       .value()) {}

  // The next `tokens` of the sequence are about to be computed.
  void extend(int tokens) {
    slots_ = cache_.append(sequence_, tokens).value();
    plan_ = attention_.plan(cache_.batch(std::array{sequence_}, std::array{tokens}).value()).value();
  }
  Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                 const TensorView& out, const TensorView& lse) override {
    CHORALE_RETURN_IF_ERROR(cache_.store(layer, slots_, k, v));
    return attention_.forward(
        *plan_, {.q = q, .k = cache_.keys(layer), .v = cache_.values(layer), .out = out, .lse = lse});
  }

 private:
  static KvCache make_cache(const ModelConfig& config, int page_size) {
    KvCacheConfig cache;
    cache.layers = config.num_hidden_layers, cache.kv_heads = config.num_key_value_heads,
    cache.head_dim = config.head_dim;
    cache.dtype = config.compute_dtype, cache.page_size = page_size, cache.pages = 200;
    return KvCache::create(cache).value();
  }
  KvCache cache_;
  KvCache::SequenceId sequence_;
  Attention attention_;
  std::vector<std::int64_t> slots_;
  std::shared_ptr<const Plan> plan_;
};

class SameBits : public ::testing::TestWithParam<DType> {
 protected:
  SameBits()
      : config_(small_config(GetParam())),
        parameters_(lively_parameters(config_, 5)),
        sequence_(random_tokens(150, config_.vocab_size, 8)),
        other_(random_tokens(70, config_.vocab_size, 9)) {}

  Model model(int threads) const { return Model::create(config_, parameters_, threads).value(); }
  Recording run(const std::vector<std::vector<std::int32_t>>& sequences, int threads) const {
    const Packed packed(sequences);
    auto attention = packed.attention(config_, "flash_attention_2", threads);
    Recording recording;
    EXPECT_TRUE(model(threads).forward(packed.inputs(), attention, nullptr, &recording).has_value());
    return recording;
  }

  ModelConfig config_;
  ParameterSet parameters_;
  std::vector<std::int32_t> sequence_, other_;
};
INSTANTIATE_TEST_SUITE_P(Types, SameBits, ::testing::Values(DType::float32, DType::bfloat16),
                         [](const auto& instance) { return std::string(name(instance.param)); });

TEST_P(SameBits, AloneAndInAPack) {
  const Recording pack = run({other_, sequence_}, 2);
  expect_rows(run({sequence_}, 2), pack, other_.size());
  expect_rows(run({other_}, 2), pack, 0);
  // A control: another token must change the rows from there on.
  std::vector<std::int32_t> changed = sequence_;
  changed[40] = (changed[40] + 1) % config_.vocab_size;
  const Recording control = run({changed}, 2);
  const auto& logits = control.rows().at({config_.num_hidden_layers, "logits"});
  const auto& expected = pack.rows().at({config_.num_hidden_layers, "logits"});
  EXPECT_TRUE(same_bits(logits[39], expected[other_.size() + 39]));
  EXPECT_FALSE(same_bits(logits[40], expected[other_.size() + 40]));
  EXPECT_FALSE(same_bits(logits[149], expected[other_.size() + 149]));
}

TEST_P(SameBits, OneThreadAndMany) {
  const Recording one = run({other_, sequence_}, 1);
  expect_rows(run({other_, sequence_}, 2), one, 0);
  expect_rows(run({other_, sequence_}, 3), one, 0);
}

TEST_P(SameBits, PackedAndPaged) {
  const Recording packed = run({sequence_}, 2);
  for (const int page_size : {1, 16, 64}) {
    PagedAttention attention(config_, page_size);
    const Model generator = model(2);
    // Chunks of a prefill, then one token at a time.
    std::size_t start = 0;
    for (const int chunk : {1, 33, 64, 40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) {
      Packed part({std::vector(sequence_.begin() + static_cast<std::ptrdiff_t>(start),
                               sequence_.begin() + static_cast<std::ptrdiff_t>(start) + chunk)});
      for (std::int32_t& position : part.positions) position += static_cast<std::int32_t>(start);
      attention.extend(chunk);
      Recording recording;
      ASSERT_TRUE(generator.forward(part.inputs(), attention, nullptr, &recording).has_value());
      expect_rows(recording, packed, start);
      start += static_cast<std::size_t>(chunk);
    }
    ASSERT_EQ(start, sequence_.size());
  }
}

TEST_P(SameBits, KeepingActivationsOrNot) {
  const Packed packed({sequence_, other_});
  auto attention = packed.attention(config_);
  Recording kept, dropped;
  std::shared_ptr<Activations> activations;
  const Tensor with = model(2).forward(packed.inputs(), attention, &activations, &kept).value();
  const Tensor without = model(2).forward(packed.inputs(), attention, nullptr, &dropped).value();
  expect_rows(kept, dropped, 0);
  EXPECT_TRUE(same_bits(with.as<float>(), without.as<float>()));
}

TEST_P(SameBits, GradientsOfAnyNumberOfThreads) {
  const Packed packed({other_, sequence_});
  const auto gradients = [&](int threads) {
    auto attention = packed.attention(config_, "flash_attention_2", threads);
    std::shared_ptr<Activations> activations;
    const Model trained = model(threads);
    const Tensor logits = trained.forward(packed.inputs(), attention, &activations).value();
    ParameterSet sums = zero_parameters(config_);
    EXPECT_TRUE(trained.backward(*activations, logits, attention, sums).is_ok());
    return sums;
  };
  const ParameterSet one = gradients(1), two = gradients(2);
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(same_bits(one[i].value.as<float>(), two[i].value.as<float>())) << one[i].name;
    EXPECT_THAT(one[i].value.as<float>(), ::testing::Contains(::testing::Ne(0.0f)))
        << one[i].name << " has no gradient";
  }
}

// Sums over rows go on from what the gradients hold: two packs one after the other are one pack of both. (Not
// so where the embedding is also the head, since its two sums are interleaved then.)
TEST_P(SameBits, GradientsOfTwoPacksAndOfOne) {
  const Model trained = model(2);
  const auto add = [&](const std::vector<std::vector<std::int32_t>>& sequences, ParameterSet& sums) {
    const Packed packed(sequences);
    auto attention = packed.attention(config_);
    std::shared_ptr<Activations> activations;
    const Tensor logits = trained.forward(packed.inputs(), attention, &activations).value();
    EXPECT_TRUE(trained.backward(*activations, logits, attention, sums).is_ok());
  };
  ParameterSet together = zero_parameters(config_), apart = zero_parameters(config_);
  add({other_, sequence_}, together);
  add({other_}, apart), add({sequence_}, apart);
  for (std::size_t i = 0; i < together.size(); ++i)
    EXPECT_TRUE(same_bits(together[i].value.as<float>(), apart[i].value.as<float>())) << together[i].name;
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
