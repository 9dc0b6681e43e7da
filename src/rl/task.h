// SumOfDigits: prompts such as "3+4+2=", answers such as "9<end>", and the rule that rewards them. It needs
// no data.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chorale/status.h"
#include "rl/tokenizer.h"

namespace chorale {

struct TaskConfig {
  static constexpr int most_digits = 5;

  int min_digits = 2;              // a prompt has from min_digits to max_digits digits,
  int max_digits = 4;              // at most most_digits
  double held_out_fraction = 0.1;  // of the sets of digits: more than 0, less than 1
  Status validate() const;         // names the field, the value and the limit

  // In tokens.
  int longest_prompt() const { return 2 * max_digits; }
  int longest_answer() const;
};

// Immutable. Tokens 0 to 9 are the digits.
class SumOfDigits {
 public:
  using Tokens = std::vector<std::int32_t>;
  static constexpr std::int32_t plus = 10, equals = 11, end = 12, vocab_size = 13;
  static Tokenizer tokenizer();

  // `seed` decides which prompts are held out. Fails if none, or all of them, would be.
  static Result<SumOfDigits> create(const TaskConfig& config, std::uint64_t seed);

  // Prompts are split once, by their set of digits: all orders of the same digits are on the same side, so an
  // answer cannot be known from a permutation seen in training.
  const std::vector<Tokens>& training_prompts() const { return training_prompts_; }
  const std::vector<Tokens>& held_out_prompts() const { return held_out_prompts_; }

  // The sum's digits and the end token.
  static Tokens answer(std::span<const std::int32_t> prompt);
  // 1 if `given` is exactly that, else 0.
  static double reward(std::span<const std::int32_t> prompt, std::span<const std::int32_t> given);

 private:
  SumOfDigits() = default;
  std::vector<Tokens> training_prompts_, held_out_prompts_;
};

}  // namespace chorale
