// Packing: prompts with their answers laid end to end, without padding, as one forward pass takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "chorale/status.h"

namespace chorale {

// A prompt and its answer. Only the answer's tokens are learnt from.
struct TrainingSequence {
  std::vector<std::int32_t> tokens;  // prompt, then answer
  std::int32_t prompt_length = 0;    // at least 1: a first token has nothing to be predicted from

  std::int32_t answer_length() const { return static_cast<std::int32_t>(tokens.size()) - prompt_length; }
  std::span<const std::int32_t> answer() const { return std::span(tokens).subspan(prompt_length); }
};

// Answer tokens of several sequences, counted through all of them in order: the index that log-probabilities,
// losses and gradients share.
std::size_t count_answer_tokens(std::span<const TrainingSequence> sequences);

struct Pack {
  std::vector<std::int32_t> tokens;      // [rows]
  std::vector<std::int32_t> positions;   // [rows], from 0 at each sequence's start
  std::vector<std::int32_t> cu_seqlens;  // [sequences + 1]
  // One entry per answer token: the row that predicts it (the row before it), and what it is.
  std::vector<std::int32_t> logit_rows;
  std::vector<std::int32_t> targets;
};

// Fails on a sequence without prompt, or whose prompt is longer than itself, naming the sequence.
Result<Pack> pack(std::span<const TrainingSequence> sequences);

// Cuts the sequences, in their order, into runs [first, last) of at most `token_budget` tokens. A sequence
// that is longer than the budget by itself becomes a run of its own. The cut depends on the lengths alone, so
// that gradients are always summed in the same order.
std::vector<std::pair<std::size_t, std::size_t>> split_by_tokens(std::span<const TrainingSequence> sequences,
                                                                 std::int64_t token_budget);

}  // namespace chorale
