// What the cache does for a rollout, seen from its results: shared prompts, swapped sequences and 8-bit keys
// give the bits of a rollout without them, or of the trainer.
#include <gtest/gtest.h>

#include "rollout/fixture.h"
#include "trainer/trainer.h"

namespace chorale {
namespace {

GeneratorConfig config_with(std::int64_t pages, Preemption preemption = Preemption::recompute) {
  return {.page_size = 4,
          .pages = pages,
          .scheduler = {.tokens_per_step = 32, .max_running = 8, .preemption = preemption}};
}

// Groups of requests with one prompt each; the prompts begin alike too.
std::vector<Request> groups(int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    std::vector<std::int32_t> prompt(21);
    for (std::int32_t j = 0; j < 21; ++j)
      prompt[static_cast<std::size_t>(j)] = j < 13 ? j : (j * (1 + i / 4)) % 37;
    requests.push_back({.id = i,
                        .prompt = prompt,
                        .max_new_tokens = 12 + i % 5,
                        .sampling = {.seed = static_cast<std::uint64_t>(i)},
                        .stop_tokens = {}});
  }
  return requests;
}

std::vector<Completion> each_alone(const Model& model, const std::vector<Request>& requests) {
  std::vector<Completion> completions;
  for (const Request& request : requests) {
    Generator generator = make(model, config_with(100));
    completions.push_back(generator.generate(std::span(&request, 1)).value().front());
    EXPECT_EQ(completions.back().shared_tokens, 0) << "nothing to share with";
  }
  return completions;
}

// One after the other, so that what is shared comes from pages that nobody uses any more.
TEST(CacheReuse, APrefixFromFreedPagesChangesNoBit) {
  const Model model = small_model(DType::bfloat16);
  const std::vector<Request> requests = groups(8);
  GeneratorConfig config = config_with(100);
  config.scheduler.max_running = 1;
  Generator generator = make(model, config);
  const auto completions = generator.generate(requests).value();
  expect_same(each_alone(model, requests), completions);
  EXPECT_EQ(completions[0].shared_tokens, 0);
  EXPECT_EQ(completions[1].shared_tokens, 20) << "the group's prompt, but for the last token";
  EXPECT_EQ(completions[4].shared_tokens, 12) << "what the groups have in common";
}

// The pool is small: what is cached is evicted for those that run.
TEST(CacheReuse, EvictionChangesNoBit) {
  const Model model = small_model(DType::float32);
  const std::vector<Request> requests = groups(16);
  Generator generator = make(model, config_with(14));
  expect_same(each_alone(model, requests), generator.generate(requests).value());
}

TEST(CacheReuse, NewWeightsShareNothingWithOldOnes) {
  Model model = small_model(DType::float32);
  Generator generator = make(model, config_with(100));
  const std::vector<Request> requests = groups(1);
  const auto before = generator.generate(requests).value();
  EXPECT_EQ(generator.generate(requests).value()[0].shared_tokens, 0) << "the generator was idle in between";
  ParameterSet other = random_parameters(model.config(), 5);
  for (const NamedTensor& parameter : other)
    for (float& x : parameter.value.as<float>()) x *= 9;
  ASSERT_TRUE(model.set_parameters(other).is_ok());
  const auto after = generator.generate(requests).value();
  expect_same(each_alone(model, requests), after);
  EXPECT_NE(before[0].log_probs, after[0].log_probs);
}

TEST(CacheReuse, SwapAndRecomputationGiveTheSameBits) {
  const Model model = small_model(DType::bfloat16);
  const std::vector<Request> requests = groups(12);
  const auto expected = each_alone(model, requests);
  std::int64_t computed[2];
  for (const Preemption preemption : {Preemption::recompute, Preemption::swap}) {
    Generator generator = make(model, config_with(20, preemption));
    expect_same(expected, generator.generate(requests).value());
    EXPECT_GT(generator.stats().preemptions, 0);
    computed[static_cast<int>(preemption)] = generator.stats().computed_tokens;
  }
  EXPECT_LT(computed[1], computed[0]) << "swapped tokens are not computed again";
}

// The log-probabilities that an 8-bit rollout records are those of a trainer that quantises its packed keys
// alike.
TEST(CacheReuse, AnEightBitRolloutAgreesWithItsTrainer) {
  const auto fp8 = DType::float8_e4m3;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const Model model = small_model(dtype);
    const std::vector<float> key_scales{0.02f, 0.5f, 1, 0.013f}, value_scales{0.1f, 3, 0.25f, 1};
    GeneratorConfig config = config_with(20, Preemption::swap);
    config.key_scales = key_scales;
    config.value_scales = value_scales;
    Generator generator = make(model, config, {.kv_dtype = fp8});
    const std::vector<Request> requests = groups(8);
    const auto completions = generator.generate(requests).value();
    EXPECT_GT(generator.stats().preemptions, 0);
    EXPECT_GT(generator.stats().shared_tokens, 0);

    std::vector<TrainingSequence> sequences;
    std::vector<float> recorded;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      sequences.push_back({requests[i].prompt, static_cast<std::int32_t>(requests[i].prompt.size())});
      sequences.back().tokens.insert(sequences.back().tokens.end(), completions[i].tokens.begin(),
                                     completions[i].tokens.end());
      recorded.insert(recorded.end(), completions[i].log_probs.begin(), completions[i].log_probs.end());
    }
    const auto replay = [&](std::optional<DType> kv_dtype, std::vector<float> k_scales,
                            std::vector<float> v_scales) {
      const PackedLayer layer{attention(model, {.kv_dtype = kv_dtype}), std::nullopt};
      PackedAttention packed({layer, layer}, std::move(k_scales), std::move(v_scales));
      return answer_log_probs(model, packed, sequences, {.tokens_per_pack = 100, .threads = 2}).value();
    };
    EXPECT_EQ(replay(fp8, key_scales, value_scales), recorded);
    EXPECT_NE(replay({}, {}, {}), recorded) << "control: without quantisation the trainer differs";
    EXPECT_NE(replay(fp8, value_scales, value_scales), recorded) << "control: so it does with other scales";
  }
}

TEST(CacheReuse, EightBitsWithoutScalesAreRefused) {
  const Model model = small_model(DType::float32);
  const Attention both = attention(model, {.kv_dtype = DType::float8_e4m3});
  const auto refused = Generator::create(model, LayerAttentions::uniform(both, 2), config_with(10));
  EXPECT_EQ(refused.status().message(),
            "key_scales has 0 elements: must have 4 for 2 layers of 2 heads in float8_e4m3");
  PackedAttention packed({{attention(model, {.kv_dtype = DType::float8_e4m3}), std::nullopt}});
  EXPECT_EQ(packed.plan(std::vector<std::int32_t>{0, 3}).code(), Code::invalid_argument);
}

}  // namespace
}  // namespace chorale
