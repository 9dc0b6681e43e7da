// Random numbers that are a function of where they are used, not of what was drawn before: the draw of (seed,
// stream, step, index) is the same in a run that was interrupted and resumed. There is no state to save.
#pragma once

#include <cstdint>

namespace chorale {

// What a draw is for; streams are independent.
enum class Stream : std::uint64_t {
  held_out,
  warmup_prompts,
  rollout_prompts,
  rollout_sampling,
  verification
};

// 64 mixed bits (SplitMix64's finaliser, Steele et al. 2014, applied to each argument in turn).
constexpr std::uint64_t random_bits(std::uint64_t seed, Stream stream, std::uint64_t step,
                                    std::uint64_t index) {
  std::uint64_t state = seed;
  for (const std::uint64_t word : {static_cast<std::uint64_t>(stream), step, index}) {
    state += 0x9e3779b97f4a7c15u * (word + 1);
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    state ^= state >> 31;
  }
  return state;
}

// An integer of [0, bound), for a bound of at least 1 and far below 2^64, where the modulo's bias does not
// matter.
constexpr std::uint64_t random_below(std::uint64_t bits, std::uint64_t bound) { return bits % bound; }
// A number of [0, 1).
constexpr double random_unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

}  // namespace chorale
