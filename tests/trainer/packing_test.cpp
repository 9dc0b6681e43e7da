#include "trainer/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace chorale {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(Packing, LaysSequencesEndToEndAndPredictsAnswersFromTheRowBefore) {
  const std::vector<TrainingSequence> sequences{{{7, 8, 9, 1}, 2}, {{5, 6}, 1}, {{4, 4, 4}, 3}};
  const Pack pack = chorale::pack(sequences).value();
  EXPECT_THAT(pack.tokens, ElementsAre(7, 8, 9, 1, 5, 6, 4, 4, 4));
  EXPECT_THAT(pack.positions, ElementsAre(0, 1, 2, 3, 0, 1, 0, 1, 2));
  EXPECT_THAT(pack.cu_seqlens, ElementsAre(0, 4, 6, 9));
  EXPECT_THAT(pack.logit_rows, ElementsAre(1, 2, 4));
  EXPECT_THAT(pack.targets, ElementsAre(9, 1, 6));
  EXPECT_EQ(count_answer_tokens(sequences), 3u);
}

TEST(Packing, RefusesASequenceWithoutPrompt) {
  const auto refused = chorale::pack(std::vector<TrainingSequence>{{{1, 2}, 1}, {{1, 2}, 0}});
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.status().message(), HasSubstr("sequence 1: prompt length 0"));
  EXPECT_FALSE(chorale::pack(std::vector<TrainingSequence>{{{1, 2}, 3}}));
}

TEST(Packing, SplitsInOrderWithinTheBudget) {
  std::vector<TrainingSequence> sequences;
  for (const std::size_t length : {3u, 3u, 4u, 11u, 2u, 8u})
    sequences.push_back({std::vector<std::int32_t>(length, 1), 1});
  EXPECT_THAT(split_by_tokens(sequences, 10), ElementsAre(Pair(0, 3), Pair(3, 4), Pair(4, 6)));
  EXPECT_THAT(split_by_tokens(sequences, 1),
              ElementsAre(Pair(0, 1), Pair(1, 2), Pair(2, 3), Pair(3, 4), Pair(4, 5), Pair(5, 6)));
  EXPECT_THAT(split_by_tokens({}, 10), IsEmpty());
}

}  // namespace
}  // namespace chorale
