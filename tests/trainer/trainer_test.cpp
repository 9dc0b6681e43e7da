#include "trainer/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include "base/files.h"
#include "trainer/atomic_folder.h"
#include "trainer/same_bits.h"

namespace chorale {
namespace {

using ::testing::HasSubstr;

ModelConfig tiny_model() {
  return {.vocab_size = 17,
          .hidden_size = 32,
          .intermediate_size = 48,
          .num_hidden_layers = 2,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 8,
          .max_position_embeddings = 64};
}

// Larger weights than a fresh model's, so that what one sequence does could be seen in another.
ParameterSet lively_parameters(const ModelConfig& config) {
  ParameterSet parameters = random_parameters(config, 4);
  for (NamedTensor& tensor : parameters)
    if (tensor.value.view().rank > 1)
      for (float& value : tensor.value.as<float>()) value *= 8;
  return parameters;
}

std::vector<TrainingSequence> some_sequences() {
  std::mt19937 random(5);
  std::vector<TrainingSequence> sequences;
  for (const std::int32_t length : {5, 2, 19, 7, 33}) {
    TrainingSequence sequence{{}, length / 2};
    for (int i = 0; i < length; ++i) sequence.tokens.push_back(static_cast<std::int32_t>(random() % 17));
    sequences.push_back(sequence);
  }
  return sequences;
}

Trainer make_trainer(const ParameterSet& parameters, const AdamWConfig& optimizer = {},
                     ScoringConfig scoring = {.temperature = 0.8f}) {
  const ModelConfig config = tiny_model();
  const Attention attention = Attention::create(config.problem(), "flash_attention_2", Device::cpu(),
                                                {Phase::forward, Phase::backward})
                                  .value();
  PackedAttention packed(
      std::vector<PackedLayer>(config.num_hidden_layers, PackedLayer{attention, attention}));
  return Trainer::create(config, parameters, std::move(packed), scoring, optimizer).value();
}

// A loss with a different pull at every token.
double slope(std::size_t token) {
  return 0.01 * (1 + static_cast<double>(token % 5)) * (token % 3 == 0 ? -1 : 1);
}
TokenLoss linear_loss(std::size_t token, float log_prob) {
  return {.loss = slope(token) * log_prob, .gradient = static_cast<float>(slope(token))};
}
double loss_at(const ParameterSet& parameters) {
  const auto log_probs = make_trainer(parameters).log_probs(some_sequences(), 0.8f).value();
  double loss = 0;
  for (std::size_t i = 0; i < log_probs.size(); ++i) loss += linear_loss(i, log_probs[i]).loss;
  return loss;
}

TEST(Trainer, PackingChangesNoBitOfALogProbability) {
  const auto sequences = some_sequences();
  Trainer trainer = make_trainer(lively_parameters(tiny_model()));
  const auto together = trainer.log_probs(sequences, 0.8f).value();
  ASSERT_EQ(together.size(), count_answer_tokens(sequences));
  std::vector<float> alone;
  for (const TrainingSequence& sequence : sequences) {
    const auto part = trainer.log_probs(std::span(&sequence, 1), 0.8f).value();
    alone.insert(alone.end(), part.begin(), part.end());
  }
  EXPECT_EQ(together, alone);
  const auto in_packs =
      make_trainer(lively_parameters(tiny_model()), {}, {.tokens_per_pack = 10, .threads = 1})
          .log_probs(sequences, 0.8f)
          .value();
  EXPECT_EQ(together, in_packs);
  EXPECT_NE(together, trainer.log_probs(sequences, 1.0f).value()) << "the temperature must matter";
}

// AdamW that remembers nothing and divides by nearly 1 moves by g / (|g| + 1) at rate 1, from which g is read
// back.
ParameterSet gradient_of(const ParameterSet& parameters, ScoringConfig scoring,
                         StepResult* result = nullptr) {
  const AdamWConfig revealing{.learning_rate = 1, .beta1 = 0, .beta2 = 0, .epsilon = 1, .max_grad_norm = 0};
  Trainer trainer = make_trainer(parameters, revealing, scoring);
  const StepResult step = trainer.step(some_sequences(), linear_loss).value();
  if (result != nullptr) *result = step;
  ParameterSet gradient = clone(parameters);
  for (std::size_t i = 0; i < gradient.size(); ++i)
    for (std::int64_t j = 0; j < gradient[i].value.elements(); ++j) {
      const float moved = parameters[i].value.as<float>()[j] - trainer.parameters()[i].value.as<float>()[j];
      gradient[i].value.as<float>()[j] = moved / (1 - std::abs(moved));
    }
  return gradient;
}

TEST(Trainer, GradientIsTheSlopeOfTheLoss) {
  const ParameterSet parameters = lively_parameters(tiny_model());
  StepResult result;
  const ParameterSet gradient =
      gradient_of(parameters, {.temperature = 0.8f, .tokens_per_pack = 25}, &result);
  EXPECT_NEAR(result.loss, loss_at(parameters), 1e-6);
  // Along the gradient the loss rises by its squared norm; along the gradient of one tensor, by that one's.
  for (std::size_t tensor = 0; tensor < gradient.size(); ++tensor) {
    double squares = 0;
    for (const float value : gradient[tensor].value.as<float>())
      squares += static_cast<double>(value) * value;
    const double step = 2e-3 / std::sqrt(squares);
    const auto moved = [&](double by) {
      ParameterSet there = clone(parameters);
      for (std::int64_t j = 0; j < there[tensor].value.elements(); ++j)
        there[tensor].value.as<float>()[j] += static_cast<float>(by * gradient[tensor].value.as<float>()[j]);
      return loss_at(there);
    };
    EXPECT_NEAR((moved(step) - moved(-step)) / (2 * step), squares, 0.02 * squares + 1e-7)
        << gradient[tensor].name;
  }
}

TEST(Trainer, PacksAndThreadsOnlyRoundDifferentlyAndNotAtAll) {
  const ParameterSet parameters = lively_parameters(tiny_model());
  const ParameterSet one_pack = gradient_of(parameters, {.temperature = 0.8f, .threads = 1});
  const ParameterSet many_packs =
      gradient_of(parameters, {.temperature = 0.8f, .tokens_per_pack = 20, .threads = 1});
  for (std::size_t i = 0; i < one_pack.size(); ++i)
    for (std::int64_t j = 0; j < one_pack[i].value.elements(); ++j)
      ASSERT_NEAR(one_pack[i].value.as<float>()[j], many_packs[i].value.as<float>()[j], 2e-6)
          << one_pack[i].name;
  EXPECT_TRUE(same_bits(many_packs,
                        gradient_of(parameters, {.temperature = 0.8f, .tokens_per_pack = 20, .threads = 3})));
}

// More answer tokens than there are logits at a time: the chunks of the head are one pack's.
TEST(Trainer, ChunksOfLogitsChangeNoBit) {
  std::vector<TrainingSequence> sequences;
  while (count_answer_tokens(sequences) < 2200)
    for (const TrainingSequence& sequence : some_sequences()) sequences.push_back(sequence);
  const ParameterSet parameters = lively_parameters(tiny_model());
  const auto step = [&](std::int64_t tokens_per_pack) {
    Trainer trainer = make_trainer(parameters, {}, {.tokens_per_pack = tokens_per_pack, .threads = 2});
    EXPECT_TRUE(trainer.step(sequences, linear_loss).has_value());
    return clone(trainer.parameters());
  };
  EXPECT_TRUE(same_bits(step(1'000'000), step(400))) << "three chunks of one pack, or many small packs";
  Trainer whole = make_trainer(parameters, {}, {.tokens_per_pack = 1'000'000});
  Trainer small = make_trainer(parameters, {}, {.tokens_per_pack = 400});
  EXPECT_EQ(whole.log_probs(sequences, 1.0f).value(), small.log_probs(sequences, 1.0f).value());
}

class TrainerFiles : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_ =
      std::filesystem::temp_directory_path() / ("chorale_trainer_" + std::to_string(::getpid()));
};

TEST_F(TrainerFiles, ResumesBitForBit) {
  const AdamWConfig optimizer{.learning_rate = 0.01f, .warmup_steps = 4, .weight_decay = 0.1f};
  Trainer whole = make_trainer(lively_parameters(tiny_model()), optimizer);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(whole.step(some_sequences(), linear_loss));
  ASSERT_TRUE(whole.save(folder_).is_ok());

  Trainer resumed = make_trainer(random_parameters(tiny_model(), 99), optimizer);
  ASSERT_TRUE(resumed.restore(folder_).is_ok());
  EXPECT_TRUE(same_bits(whole.parameters(), resumed.parameters()));
  const auto before = whole.log_probs(some_sequences(), 0.8f).value();
  EXPECT_EQ(before, resumed.log_probs(some_sequences(), 0.8f).value());

  for (Trainer* trainer : {&whole, &resumed})
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(trainer->step(some_sequences(), linear_loss));
  EXPECT_TRUE(same_bits(whole.parameters(), resumed.parameters()));
  EXPECT_TRUE(same_bits(whole.optimizer().first_moment(), resumed.optimizer().first_moment()));
  EXPECT_TRUE(same_bits(whole.optimizer().second_moment(), resumed.optimizer().second_moment()));
  EXPECT_EQ(resumed.optimizer().steps(), 5);
  EXPECT_NE(before, resumed.log_probs(some_sequences(), 0.8f).value())
      << "the steps must have changed something";
}

TEST_F(TrainerFiles, RefusesWhatIsNotItsOwn) {
  ASSERT_TRUE(make_trainer(lively_parameters(tiny_model())).save(folder_).is_ok());
  Trainer trainer = make_trainer(random_parameters(tiny_model(), 1));
  const auto before = trainer.log_probs(some_sequences(), 1).value();

  ASSERT_TRUE(write_file(folder_ + "/trainer.json", "{\"optimizer_steps\": -1}").is_ok());
  EXPECT_FALSE(trainer.restore(folder_).is_ok());
  ASSERT_TRUE(write_file(folder_ + "/trainer.json", "{\"optimizer_steps\": ").is_ok());
  EXPECT_THAT(trainer.restore(folder_).message(), HasSubstr("trainer.json"));
  std::filesystem::remove_all(folder_ + "/second_moment");
  EXPECT_THAT(trainer.restore(folder_).message(), HasSubstr("second_moment"));
  EXPECT_FALSE(trainer.restore(folder_ + "/missing").is_ok());
  EXPECT_EQ(before, trainer.log_probs(some_sequences(), 1).value());
}

}  // namespace
}  // namespace chorale
