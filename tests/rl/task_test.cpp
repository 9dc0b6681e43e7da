#include "rl/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "base/files.h"
#include "rl/random.h"

namespace chorale {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Tokenizer& tokenizer() {
  static const Tokenizer instance = SumOfDigits::tokenizer();
  return instance;
}
SumOfDigits::Tokens tokens(std::string_view text) { return tokenizer().encode(text).value(); }

TEST(Task, EveryPromptIsOnOneSideAndHasOneRightAnswer) {
  const auto task =
      SumOfDigits::create({.min_digits = 2, .max_digits = 3, .held_out_fraction = 0.2}, 5).value();
  EXPECT_EQ(task.training_prompts().size() + task.held_out_prompts().size(), 1100u);
  std::set<SumOfDigits::Tokens> seen;
  for (const auto* side : {&task.training_prompts(), &task.held_out_prompts()})
    for (const auto& prompt : *side) EXPECT_TRUE(seen.insert(prompt).second) << tokenizer().decode(prompt);
  EXPECT_TRUE(seen.contains(tokens("0+7=")));
  EXPECT_TRUE(seen.contains(tokens("9+0+9=")));
}

TEST(Task, OrdersOfTheSameDigitsAreHeldOutTogether) {
  const auto task =
      SumOfDigits::create({.min_digits = 3, .max_digits = 3, .held_out_fraction = 0.3}, 5).value();
  const auto sorted = [](SumOfDigits::Tokens prompt) {
    std::ranges::sort(prompt);
    return prompt;
  };
  std::set<SumOfDigits::Tokens> trained;
  for (const auto& prompt : task.training_prompts()) trained.insert(sorted(prompt));
  for (const auto& prompt : task.held_out_prompts())
    EXPECT_FALSE(trained.contains(sorted(prompt))) << tokenizer().decode(prompt);
  EXPECT_NEAR(static_cast<double>(task.held_out_prompts().size()), 300, 90);
}

TEST(Task, SeedsHoldOutDifferentPrompts) {
  const TaskConfig config{.min_digits = 2, .max_digits = 2};
  EXPECT_EQ(SumOfDigits::create(config, 1).value().held_out_prompts(),
            SumOfDigits::create(config, 1).value().held_out_prompts());
  EXPECT_NE(SumOfDigits::create(config, 1).value().held_out_prompts(),
            SumOfDigits::create(config, 2).value().held_out_prompts());
}

TEST(Task, RewardsOnlyTheExactAnswer) {
  EXPECT_EQ(SumOfDigits::reward(tokens("3+4+2="), tokens("9<end>")), 1);
  EXPECT_EQ(SumOfDigits::reward(tokens("9+9="), tokens("18<end>")), 1);
  EXPECT_EQ(SumOfDigits::reward(tokens("0+0="), tokens("0<end>")), 1);
  for (const char* wrong : {"8<end>", "9", "99<end>", "09<end>", "9<end><end>", "<end>", "", "9+<end>"})
    EXPECT_EQ(SumOfDigits::reward(tokens("3+4+2="), tokens(wrong)), 0) << wrong;
}

TEST(Task, LengthsCoverEveryPrompt) {
  const TaskConfig config{.min_digits = 1, .max_digits = 2, .held_out_fraction = 0.5};
  const auto task = SumOfDigits::create(config, 1).value();
  for (const auto& prompt : task.training_prompts()) {
    EXPECT_LE(static_cast<int>(prompt.size()), config.longest_prompt());
    EXPECT_LE(static_cast<int>(SumOfDigits::answer(prompt).size()), config.longest_answer());
  }
  EXPECT_EQ(config.longest_prompt(), 4);
  EXPECT_EQ(config.longest_answer(), 3);
}

TEST(Task, RefusesSettingsThatCannotWork) {
  const auto refusal = [](TaskConfig config) { return SumOfDigits::create(config, 1).status().message(); };
  EXPECT_THAT(refusal({.min_digits = 0}), HasSubstr("min_digits 0"));
  EXPECT_THAT(refusal({.min_digits = 3, .max_digits = 2}), HasSubstr("max_digits 2"));
  EXPECT_THAT(refusal({.max_digits = 6}), HasSubstr("max_digits 6: must be from min_digits 2 to 5"));
  EXPECT_THAT(refusal({.held_out_fraction = 0}), HasSubstr("held_out_fraction 0"));
  EXPECT_THAT(refusal({.held_out_fraction = 1}), HasSubstr("held_out_fraction 1"));
  EXPECT_THAT(refusal({.min_digits = 1, .max_digits = 1, .held_out_fraction = 1e-9}),
              HasSubstr("leaves 10 prompts to train on and 0"));
}

TEST(Tokenizer, TakesTheLongestTokenAndNamesWhatItCannotRead) {
  const auto tokens = Tokenizer::create({"<", "<end>", "e", "é"}).value();
  EXPECT_THAT(tokens.encode("e<<end>é").value(), ElementsAre(2, 0, 1, 3));
  EXPECT_EQ(tokens.decode(std::vector<std::int32_t>{2, 0, 1, 3, 9, -1}), "e<<end>é<?><?>");
  EXPECT_THAT(tokens.encode("ee?").status().message(), HasSubstr("character 3"));
}

TEST(Tokenizer, SurvivesTheFolderAndRefusesWhatIsNotOne) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("chorale_tokenizer_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  ASSERT_TRUE(tokenizer().save(folder).is_ok());
  const auto loaded = Tokenizer::load(folder).value();
  EXPECT_EQ(loaded.size(), SumOfDigits::vocab_size);
  EXPECT_EQ(loaded.encode("1+2=").value(), tokens("1+2="));
  const std::string path = folder / "chorale_tokenizer.json";
  for (const char* bad :
       {"", "[]", "{}", "{\"tokens\": 3}", "{\"tokens\": [1]}", "{\"tokens\": [\"a\", \"a\"]}",
        "{\"tokens\": []}", "{\"tokens\": [\"\"]}", "{\"tokens\": [\"a\"], \"more\": 1}"}) {
    ASSERT_TRUE(write_file(path, bad).is_ok());
    const auto refused = Tokenizer::load(folder);
    ASSERT_FALSE(refused) << bad;
    EXPECT_THAT(refused.status().message(), HasSubstr(path)) << bad;
  }
  std::filesystem::remove_all(folder);
}

TEST(Random, DependsOnEveryArgumentAndNothingElse) {
  const auto bits = random_bits(1, Stream::warmup_prompts, 2, 3);
  EXPECT_EQ(bits, random_bits(1, Stream::warmup_prompts, 2, 3));
  EXPECT_NE(bits, random_bits(2, Stream::warmup_prompts, 2, 3));
  EXPECT_NE(bits, random_bits(1, Stream::rollout_prompts, 2, 3));
  EXPECT_NE(bits, random_bits(1, Stream::warmup_prompts, 3, 3));
  EXPECT_NE(bits, random_bits(1, Stream::warmup_prompts, 2, 4));
  EXPECT_NE(random_bits(1, Stream::warmup_prompts, 2, 3), random_bits(1, Stream::warmup_prompts, 3, 2));
  double mean = 0;
  for (std::uint64_t i = 0; i < 4000; ++i) mean += random_unit(random_bits(7, Stream::held_out, 0, i)) / 4000;
  EXPECT_NEAR(mean, 0.5, 0.03);
}

}  // namespace
}  // namespace chorale
