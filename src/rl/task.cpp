#include "rl/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "rl/random.h"

namespace chorale {
namespace {

// The decimal digits of `number`, first digit first.
SumOfDigits::Tokens decimal(std::uint64_t number) {
  SumOfDigits::Tokens digits;
  for (const char character : std::to_string(number)) digits.push_back(character - '0');
  return digits;
}

// One number per set of digits: the digits in ascending order behind a leading 1, so that 7 and 07 differ.
std::uint64_t digit_set(SumOfDigits::Tokens digits) {
  std::ranges::sort(digits);
  std::uint64_t number = 1;
  for (const std::int32_t digit : digits) number = number * 10 + static_cast<std::uint64_t>(digit);
  return number;
}

SumOfDigits::Tokens prompt_of(const SumOfDigits::Tokens& digits) {
  SumOfDigits::Tokens prompt;
  for (const std::int32_t digit : digits) {
    prompt.push_back(digit);
    prompt.push_back(SumOfDigits::plus);
  }
  prompt.back() = SumOfDigits::equals;
  return prompt;
}

}  // namespace

Status TaskConfig::validate() const {
  if (min_digits < 1)
    return Status::invalid_argument(fmt::format("min_digits {}: must be at least 1", min_digits));
  if (max_digits < min_digits || max_digits > most_digits)
    return Status::invalid_argument(
        fmt::format("max_digits {}: must be from min_digits {} to {}", max_digits, min_digits, most_digits));
  if (!(held_out_fraction > 0 && held_out_fraction < 1))
    return Status::invalid_argument(
        fmt::format("held_out_fraction {}: must be more than 0 and less than 1", held_out_fraction));
  return Status::ok();
}

int TaskConfig::longest_answer() const { return static_cast<int>(decimal(9u * max_digits).size()) + 1; }

Tokenizer SumOfDigits::tokenizer() {
  return Tokenizer::create({"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "=", "<end>"}).value();
}

Result<SumOfDigits> SumOfDigits::create(const TaskConfig& config, std::uint64_t seed) {
  CHORALE_RETURN_IF_ERROR(config.validate());
  SumOfDigits task;
  std::uint64_t count = 1;  // 10^length
  for (int length = 1; length <= config.max_digits; ++length) {
    count *= 10;
    if (length < config.min_digits) continue;
    for (std::uint64_t number = 0; number < count; ++number) {
      Tokens digits = decimal(number);
      digits.insert(digits.begin(), length - digits.size(), 0);
      const double draw = random_unit(random_bits(seed, Stream::held_out, 0, digit_set(digits)));
      (draw < config.held_out_fraction ? task.held_out_prompts_ : task.training_prompts_)
          .push_back(prompt_of(digits));
    }
  }
  if (task.held_out_prompts_.empty() || task.training_prompts_.empty())
    return Status::invalid_argument(fmt::format(
        "held_out_fraction {} leaves {} prompts to train on and {} to evaluate with: both must be "
        "at least 1",
        config.held_out_fraction, task.training_prompts_.size(), task.held_out_prompts_.size()));
  return task;
}

SumOfDigits::Tokens SumOfDigits::answer(std::span<const std::int32_t> prompt) {
  std::uint64_t sum = 0;
  for (const std::int32_t token : prompt)
    if (token <= 9) sum += static_cast<std::uint64_t>(token);
  Tokens answer = decimal(sum);
  answer.push_back(end);
  return answer;
}

double SumOfDigits::reward(std::span<const std::int32_t> prompt, std::span<const std::int32_t> given) {
  return std::ranges::equal(answer(prompt), given) ? 1 : 0;
}

}  // namespace chorale
