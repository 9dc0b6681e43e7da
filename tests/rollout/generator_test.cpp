// The generator with a small random model. The claim under test is mostly one: a request gets the same tokens
// and the same bits of log-probability whatever else is running and however the work is cut up.
#include "rollout/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "rollout/fixture.h"
#include "trainer/trainer.h"

namespace chorale {
namespace {

using testing::HasSubstr;

LayerAttentions attentions(const Model& model) { return LayerAttentions::uniform(attention(model), 2); }

GeneratorConfig roomy() {
  return {
      .page_size = 8, .pages = 400, .scheduler = {.tokens_per_step = 64, .max_running = 32}, .threads = 1};
}

// Prompts of many lengths, groups of three with one prompt, and every way to sample.
std::vector<Request> crowd() {
  std::mt19937 random(5);
  std::vector<Request> requests;
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < 18; ++i) {
    if (i % 3 == 0) {
      prompt.assign(1 + random() % 40, 0);
      for (std::int32_t& token : prompt) token = static_cast<std::int32_t>(random() % 37);
    }
    requests.push_back(
        {.id = 100 + i,
         .prompt = prompt,
         .max_new_tokens = 1 + static_cast<std::int64_t>(random() % 30),
         .sampling = {.temperature = i % 5 == 0 ? 0.f : 0.5f + 0.25f * static_cast<float>(i % 4),
                      .top_k = i % 4 == 1 ? 7 : 0,
                      .top_p = i % 4 == 2 ? 0.8f : 1.f,
                      .seed = static_cast<std::uint64_t>(i) * 31},
         .stop_tokens = {3, 11}});
  }
  return requests;
}

// Each request by itself, in a pool with room to spare.
std::vector<Completion> one_by_one(const Model& model, const std::vector<Request>& requests) {
  std::vector<Completion> completions;
  Generator generator = make(model, roomy());
  for (const Request& request : requests)
    completions.push_back(generator.generate(std::span(&request, 1)).value().front());
  return completions;
}

TEST(Generator, FillsInCompletions) {
  const Model model = small_model();
  const std::vector<Completion> completions = one_by_one(model, crowd());
  std::set<FinishReason> reasons;
  std::set<std::vector<std::int32_t>> different;
  for (std::size_t i = 0; i < completions.size(); ++i) {
    const Completion& completion = completions[i];
    const Request request = crowd()[i];
    EXPECT_EQ(completion.id, request.id);
    ASSERT_EQ(completion.tokens.size(), completion.log_probs.size());
    ASSERT_FALSE(completion.tokens.empty());
    const bool ends = completion.tokens.back() == 3 || completion.tokens.back() == 11;
    EXPECT_EQ(completion.reason, ends ? FinishReason::stop : FinishReason::length);
    if (!ends) {
      EXPECT_EQ(std::ssize(completion.tokens), request.max_new_tokens);
    }
    for (std::size_t j = 0; j + 1 < completion.tokens.size(); ++j)
      EXPECT_TRUE(completion.tokens[j] != 3 && completion.tokens[j] != 11);
    for (const float log_prob : completion.log_probs) EXPECT_LE(log_prob, 0);
    reasons.insert(completion.reason);
    different.insert(completion.tokens);
  }
  EXPECT_EQ(reasons.size(), 2u) << "the requests must show both";
  EXPECT_GT(different.size(), 12u) << "the model must not say the same to everybody";
}

class SameBits : public testing::TestWithParam<DType> {
 protected:
  const Model model = small_model(GetParam());
  const std::vector<Completion> expected = one_by_one(model, crowd());
};

TEST_P(SameBits, InACrowd) {
  Generator generator = make(model, roomy());
  expect_same(expected, generator.generate(crowd()).value());
  EXPECT_EQ(generator.stats().preemptions, 0);
  EXPECT_GT(generator.stats().shared_tokens, 0) << "groups must have shared pages";
}

TEST_P(SameBits, InATinyPoolWithPreemption) {
  Generator generator = make(
      model,
      {.page_size = 4, .pages = 20, .scheduler = {.tokens_per_step = 32, .max_running = 16}, .threads = 1});
  expect_same(expected, generator.generate(crowd()).value());
  EXPECT_GT(generator.stats().preemptions, 0) << "the pool must run out";
}

TEST_P(SameBits, InAnyChunksAndPages) {
  for (const auto& [tokens_per_step, page_size] :
       {std::pair{1, 16}, {5, 1}, {17, 2}, {64, 64}, {1000, 256}}) {
    SCOPED_TRACE(testing::Message() << tokens_per_step << " tokens a step, pages of " << page_size);
    Generator generator =
        make(model,
             {.page_size = page_size,
              .pages = 1600 / page_size,
              .scheduler = {.tokens_per_step = tokens_per_step, .max_running = std::min(tokens_per_step, 9)},
              .threads = 1});
    expect_same(expected, generator.generate(crowd()).value());
  }
}

TEST_P(SameBits, InAnyOrderOfArrivalAndLate) {
  std::vector<Request> requests = crowd();
  std::ranges::reverse(requests);
  Generator generator = make(model, roomy());
  std::map<RequestId, Completion> completions;
  for (const Request& request : requests) {  // one joins at each step
    ASSERT_TRUE(generator.submit(request).is_ok());
    for (Completion& completion : generator.step().value())
      completions[completion.id] = std::move(completion);
  }
  while (!generator.is_idle())
    for (Completion& completion : generator.step().value())
      completions[completion.id] = std::move(completion);
  std::vector<Completion> actual;
  for (const Completion& completion : expected) actual.push_back(completions[completion.id]);
  expect_same(expected, actual);
}

TEST_P(SameBits, OnAnyNumberOfThreads) {
  for (const int threads : {1, 2, 5}) {
    const Model threaded = small_model(GetParam(), threads);
    GeneratorConfig config = roomy();
    config.threads = threads;
    Generator generator =
        Generator::create(threaded, LayerAttentions::uniform(attention(threaded, {.threads = threads}), 2),
                          config)
            .value();
    expect_same(expected, generator.generate(crowd()).value());
  }
}

// Prefill and decode may differ in their bits; a token that is computed again is computed as it was.
TEST_P(SameBits, WhenThePhasesAreDifferentImplementations) {
  const LayerAttentions mixed{
      {attention(model), attention(model, {.implementation = "eager"})},
      {attention(model, {.implementation = "eager"}), attention(model, {.implementation = "eager"})}};
  const auto generate = [&](const GeneratorConfig& config, std::int64_t& preemptions) {
    Generator generator = Generator::create(model, mixed, config).value();
    auto completions = generator.generate(crowd()).value();
    preemptions = generator.stats().preemptions;
    return completions;
  };
  std::int64_t preemptions = 0;
  const auto calm = generate(roomy(), preemptions);
  const auto pressed = generate(
      {.page_size = 4, .pages = 20, .scheduler = {.tokens_per_step = 32, .max_running = 16}, .threads = 1},
      preemptions);
  EXPECT_GT(preemptions, 0);
  expect_same(calm, pressed);
  bool differs = false;
  for (std::size_t i = 0; i < calm.size(); ++i) differs |= calm[i].log_probs != expected[i].log_probs;
  EXPECT_TRUE(differs || GetParam() == DType::bfloat16)
      << "eager must leave a trace, or this test sees nothing";
}

// A prompt that repeats what another request has just generated: the tokens are the same, but there they are
// decoded and here they are prefilled, so keys may only be shared up to the end of the other's prompt.
TEST_P(SameBits, WhenAPromptRepeatsWhatAnotherGenerated) {
  const LayerAttentions mixed{
      {attention(model), attention(model)},
      {attention(model, {.implementation = "eager"}), attention(model, {.implementation = "eager"})}};
  const auto make_mixed = [&] {
    return Generator::create(model, mixed, {.page_size = 4, .pages = 100, .scheduler = {}, .threads = 1})
        .value();
  };
  const Request first{.id = 1,
                      .prompt = {5, 6, 7, 8, 9, 10},
                      .max_new_tokens = 60,
                      .sampling = {.seed = 3},
                      .stop_tokens = {}};
  Generator alone = make_mixed();
  const std::vector<std::int32_t> generated = alone.generate(std::span(&first, 1)).value().front().tokens;
  Request second{
      .id = 2, .prompt = first.prompt, .max_new_tokens = 20, .sampling = {.seed = 4}, .stop_tokens = {}};
  second.prompt.insert(second.prompt.end(), generated.begin(), generated.begin() + 25);
  const Completion expected_second = alone.generate(std::span(&second, 1)).value().front();

  Generator together = make_mixed();
  ASSERT_TRUE(together.submit(first).is_ok());
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(together.step());
  ASSERT_TRUE(together.submit(second).is_ok());
  std::vector<Completion> seen;
  while (!together.is_idle())
    for (Completion& completion : together.step().value())
      if (completion.id == 2) seen.push_back(std::move(completion));
  expect_same({expected_second}, seen);
  EXPECT_EQ(seen.front().shared_tokens, 6) << "the first request's prompt, and no more";
}

// What this is all for: the trainer computes the same log-probabilities from packed sequences.
TEST_P(SameBits, InTheTrainersPackedForward) {
  std::vector<PackedLayer> layers(2, {attention(model), std::nullopt});
  PackedAttention packed(layers);
  const std::vector<Request> requests = crowd();
  std::map<float, std::pair<std::vector<TrainingSequence>, std::vector<float>>> by_temperature;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    auto& [sequences, log_probs] = by_temperature[requests[i].sampling.recorded_temperature()];
    TrainingSequence sequence{requests[i].prompt, static_cast<std::int32_t>(requests[i].prompt.size())};
    sequence.tokens.insert(sequence.tokens.end(), expected[i].tokens.begin(), expected[i].tokens.end());
    sequences.push_back(std::move(sequence));
    log_probs.insert(log_probs.end(), expected[i].log_probs.begin(), expected[i].log_probs.end());
  }
  EXPECT_GT(by_temperature.size(), 2u);
  for (const auto& [temperature, recorded] : by_temperature) {
    const ScoringConfig scoring{.temperature = temperature, .tokens_per_pack = 100};
    EXPECT_EQ(answer_log_probs(model, packed, recorded.first, scoring).value(), recorded.second)
        << "temperature " << temperature;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SameBits, testing::Values(DType::float32, DType::bfloat16),
                         [](const auto& instance) { return std::string(name(instance.param)); });

// Keeps, for each (request, position), what one operation gave.
class Recorder : public StepObserver {
 public:
  void begin_step(std::span<const StepRow> rows, std::span<const std::int32_t> logit_rows) override {
    rows_.assign(rows.begin(), rows.end());
    logit_rows_.assign(logit_rows.begin(), logit_rows.end());
  }
  void record(int layer, std::string_view operation, const TensorView& output) override {
    if (operation == "logits") {
      EXPECT_EQ(output.shape[0], std::ssize(logit_rows_));
      for (const std::int32_t row : logit_rows_) drawn_from.insert({rows_[row].request, rows_[row].position});
    }
    if (layer != 1 || operation != "residual_2") return;
    EXPECT_EQ(output.shape[0], std::ssize(rows_));
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const auto* row =
          static_cast<const float*>(output.data) + static_cast<std::int64_t>(i) * output.stride[0];
      const std::vector<float> bits(row, row + output.shape[1]);
      const auto [place, is_new] = seen.insert({{rows_[i].request, rows_[i].position}, bits});
      if (is_new) continue;
      ++seen_again;
      EXPECT_EQ(place->second, bits) << "request " << rows_[i].request << ", position " << rows_[i].position;
    }
  }

  using Place = std::pair<RequestId, std::int32_t>;
  std::map<Place, std::vector<float>> seen;
  std::set<Place> drawn_from;
  std::int64_t seen_again = 0;

 private:
  std::vector<StepRow> rows_;
  std::vector<std::int32_t> logit_rows_;
};

TEST(Generator, ShowsEachRowToTheObserver) {
  const Model model = small_model();
  std::vector<Request> requests = crowd();
  for (std::size_t i = 0; i < requests.size(); ++i)
    requests[i].prompt[0] = static_cast<std::int32_t>(i);  // nothing is shared
  Recorder alone, pressed;
  Generator generator = make(model, roomy());
  generator.set_observer(&alone);
  const auto completions = generator.generate(requests).value();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const auto prompt = static_cast<std::int32_t>(requests[i].prompt.size());
    const auto last = prompt + static_cast<std::int32_t>(completions[i].tokens.size()) -
                      2;  // the last token is never computed
    for (std::int32_t position = 0; position <= last; ++position) {
      EXPECT_TRUE(alone.seen.contains({requests[i].id, position}));
      EXPECT_EQ(alone.drawn_from.contains({requests[i].id, position}), position >= prompt - 1);
    }
    EXPECT_FALSE(alone.seen.contains({requests[i].id, last + 1}));
  }
  EXPECT_EQ(alone.seen_again, 0);

  Generator tiny = make(
      model,
      {.page_size = 4, .pages = 20, .scheduler = {.tokens_per_step = 32, .max_running = 16}, .threads = 1});
  tiny.set_observer(&pressed);
  ASSERT_TRUE(tiny.generate(requests));
  EXPECT_GT(pressed.seen_again, 0);
  EXPECT_EQ(alone.seen, pressed.seen);
}

TEST(Generator, CountsWhatItDoes) {
  const Model model = small_model();
  Generator generator = make(model, roomy());
  const std::vector<Request> requests{
      {.id = 1, .prompt = {1, 2, 4}, .max_new_tokens = 4, .sampling = {}, .stop_tokens = {}}};
  ASSERT_TRUE(generator.generate(requests));
  const GeneratorStats stats = generator.stats();
  EXPECT_EQ(stats.steps, 4);
  EXPECT_EQ(stats.computed_tokens, 6);
  EXPECT_EQ(stats.generated_tokens, 4);
  EXPECT_GT(stats.seconds, 0);
  EXPECT_GT(stats.tokens_per_second(), 0);
}

TEST(Generator, RefusesBadRequestsAndChangesNothing) {
  const Model model = small_model();
  Generator generator = make(model, {.page_size = 4, .pages = 20, .scheduler = {}, .threads = 1});
  const auto refusal = [&](auto change) {
    Request request{.id = 7, .prompt = {1, 2}, .max_new_tokens = 5, .sampling = {}, .stop_tokens = {}};
    change(request);
    const Status status = generator.submit(request);
    EXPECT_FALSE(status.is_ok());
    EXPECT_THAT(status.message(), HasSubstr("request 7: "));
    return status.message();
  };
  EXPECT_THAT(refusal([](Request& r) { r.prompt.clear(); }), HasSubstr("the prompt is empty"));
  EXPECT_THAT(refusal([](Request& r) { r.prompt[1] = 37; }),
              HasSubstr("prompt[1] is 37: the vocabulary has tokens 0 to 36"));
  EXPECT_THAT(refusal([](Request& r) { r.prompt[0] = -1; }), HasSubstr("prompt[0] is -1"));
  EXPECT_THAT(refusal([](Request& r) { r.stop_tokens = {40}; }), HasSubstr("stop_tokens[0] is 40"));
  EXPECT_THAT(refusal([](Request& r) { r.max_new_tokens = 0; }),
              HasSubstr("max_new_tokens 0: must be at least 1"));
  EXPECT_THAT(refusal([](Request& r) { r.max_new_tokens = 255; }),
              HasSubstr("a prompt of 2 tokens and 255 new tokens: the model has 256 positions"));
  EXPECT_THAT(refusal([](Request& r) { r.max_new_tokens = 80; }),
              HasSubstr("the pool of 20 pages of 4 tokens holds 80"));
  EXPECT_THAT(refusal([](Request& r) { r.sampling.top_p = 0; }),
              HasSubstr("top_p 0: must be more than 0 and at most 1"));
  EXPECT_THAT(refusal([](Request& r) { r.sampling.temperature = -1; }), HasSubstr("temperature -1"));
  EXPECT_TRUE(generator.is_idle());

  std::vector<Request> requests = crowd();
  requests.resize(3);
  requests[2].id = requests[0].id;
  EXPECT_THAT(generator.generate(requests).status().message(),
              HasSubstr("request 100: an unfinished request has this id"));
  EXPECT_TRUE(generator.is_idle()) << "all or none";
}

TEST(Generator, RefusesAttentionsOfAnotherShape) {
  const Model model = small_model();
  const Attention one = attention(model);
  EXPECT_THAT(Generator::create(model, {{one}, {one, one}}, roomy()).status().message(),
              HasSubstr("1 prefill and 2 decode attentions: must be one of each for 2 layers"));
  Problem other = model.config().problem();
  other.head_dim = 16;
  const Attention wide = Attention::create(other, "eager").value();
  EXPECT_THAT(Generator::create(model, {{one, wide}, {one, one}}, roomy()).status().message(),
              HasSubstr("layer 1 has the attention problem"));
  EXPECT_THAT(Generator::create(model, LayerAttentions::uniform(wide, 2), roomy()).status().message(),
              HasSubstr("the cache holds 2 KV heads of 8 in float32"));
  EXPECT_THAT(Generator::create(model, attentions(model),
                                {.page_size = 3, .pages = 10, .scheduler = {}, .threads = 1})
                  .status()
                  .message(),
              HasSubstr("page_size 3"));
}

TEST(Generator, StopsWhenAsked) {
  const Model model = small_model();
  Generator generator = make(model, roomy());
  std::atomic<bool> stop{true};
  EXPECT_EQ(generator.generate(crowd(), &stop).status().code(), Code::interrupted);
  EXPECT_TRUE(generator.is_idle());
  stop = false;
  EXPECT_TRUE(generator.generate(crowd(), &stop)) << "and can go on afterwards";
}

TEST(Generator, DamagedWeightsAreAnErrorThatLeavesItUsable) {
  const ModelConfig config = small_config();
  ParameterSet parameters = lively_parameters(config);
  Model model = small_model();
  Generator generator = make(model, roomy());
  for (const NamedTensor& parameter : parameters)
    parameter.value.as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(model.set_parameters(parameters).is_ok());
  const auto result = generator.generate(crowd());
  EXPECT_EQ(result.status().code(), Code::corrupt_data);
  EXPECT_THAT(result.status().message(), HasSubstr("request 10"));
  EXPECT_TRUE(generator.is_idle());
  ASSERT_TRUE(model.set_parameters(lively_parameters(config)).is_ok());
  EXPECT_TRUE(generator.generate(crowd()));
}

}  // namespace
}  // namespace chorale
