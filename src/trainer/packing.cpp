#include "trainer/packing.h"

#include <fmt/format.h>

namespace chorale {

std::size_t count_answer_tokens(std::span<const TrainingSequence> sequences) {
  std::size_t count = 0;
  for (const TrainingSequence& sequence : sequences)
    count += static_cast<std::size_t>(sequence.answer_length());
  return count;
}

Result<Pack> pack(std::span<const TrainingSequence> sequences) {
  Pack pack;
  pack.cu_seqlens.push_back(0);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const TrainingSequence& sequence = sequences[i];
    const auto length = static_cast<std::int32_t>(sequence.tokens.size());
    if (sequence.prompt_length < 1 || sequence.prompt_length > length)
      return Status::invalid_argument(
          fmt::format("sequence {}: prompt length {} must be from 1 to its {} tokens", i,
                      sequence.prompt_length, length));
    const std::int32_t start = pack.cu_seqlens.back();
    pack.cu_seqlens.push_back(start + length);
    for (std::int32_t position = 0; position < length; ++position) {
      pack.tokens.push_back(sequence.tokens[position]);
      pack.positions.push_back(position);
      if (position < sequence.prompt_length) continue;
      pack.logit_rows.push_back(start + position - 1);
      pack.targets.push_back(sequence.tokens[position]);
    }
  }
  return pack;
}

std::vector<std::pair<std::size_t, std::size_t>> split_by_tokens(std::span<const TrainingSequence> sequences,
                                                                 std::int64_t token_budget) {
  std::vector<std::pair<std::size_t, std::size_t>> runs;
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto length = static_cast<std::int64_t>(sequences[i].tokens.size());
    if (runs.empty() || tokens + length > token_budget) {
      runs.emplace_back(i, i);
      tokens = 0;
    }
    runs.back().second = i + 1;
    tokens += length;
  }
  return runs;
}

}  // namespace chorale
