// Placements, local_map and shard_heads in one process. What several ranks do together:
// heads_over_ranks_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "chorale/parallel.h"

namespace chorale {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Says that it is one of several, for what needs no other.
class PretendRank final : public Communicator {
 public:
  PretendRank(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Result<Tensor> all_gather(const TensorView&, int) override {
    return Status::internal("there is nobody else");
  }
  Status barrier() override { return Status::internal("there is nobody else"); }

 private:
  int rank_, size_;
};

Tensor numbered(std::initializer_list<std::int64_t> shape) {
  Tensor tensor = Tensor::zeros(DType::float32, shape);
  std::iota(tensor.as<float>().begin(), tensor.as<float>().end(), 0.0f);
  return tensor;
}

std::vector<float> values(const Tensor& tensor) {
  return {tensor.as<float>().begin(), tensor.as<float>().end()};
}

TEST(Placement, Describes) {
  EXPECT_EQ(Placement::replicate().describe(), "Replicate()");
  EXPECT_EQ(Placement::shard(1).describe(), "Shard(1)");
  EXPECT_NE(Placement::shard(0), Placement::replicate());
  EXPECT_NE(Placement::shard(0), Placement::shard(1));
}

TEST(Distribute, CutsWhereAsked) {
  const Tensor whole = numbered({2, 4});
  PretendRank second(1, 2);
  EXPECT_THAT(values(distribute(whole, Placement::shard(0), second)->local), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(values(distribute(whole, Placement::shard(1), second)->local), ElementsAre(2, 3, 6, 7));
  EXPECT_EQ(distribute(whole, Placement::shard(1), second)->local.shape(1), 2);
  EXPECT_EQ(values(distribute(whole, Placement::replicate(), second)->local), values(whole));
}

TEST(Distribute, RefusesWhatDoesNotDivide) {
  PretendRank one_of_three(0, 3);
  const Status uneven = distribute(numbered({2, 4}), Placement::shard(1), one_of_three).status();
  EXPECT_EQ(uneven.code(), Code::invalid_argument);
  EXPECT_THAT(uneven.message(),
              HasSubstr("dimension 1 of float32 [2, 4] has 4 entries: must divide by the 3 ranks"));
  for (const int dimension : {-1, 2})
    EXPECT_THAT(distribute(numbered({3, 3}), Placement::shard(dimension), one_of_three).status().message(),
                HasSubstr("must be from 0 to 1"));
  EXPECT_FALSE(distribute(Tensor(), Placement::shard(0), one_of_three)) << "no tensor at all";
}

TEST(SingleProcess, HoldsTheWhole) {
  const auto alone = single_process();
  EXPECT_EQ(alone->size(), 1);
  EXPECT_EQ(alone->rank(), 0);
  EXPECT_TRUE(alone->barrier().is_ok());
  for (const Placement placement : {Placement::replicate(), Placement::shard(0), Placement::shard(2)}) {
    const auto cut = distribute(numbered({2, 3, 4}), placement, *alone).value();
    EXPECT_EQ(cut.placement, placement);
    EXPECT_EQ(values(cut.full(*alone).value()), values(numbered({2, 3, 4})));
  }
  EXPECT_THAT(alone->all_gather(numbered({2}), 1).status().message(),
              HasSubstr("dimension 1 of float32 [2]"));
}

TEST(SingleProcess, GathersStridedViews) {
  const Tensor whole = numbered({2, 4});
  EXPECT_THAT(values(single_process()->all_gather(whole.view().slice(1, 1, 3), 0).value()),
              ElementsAre(1, 2, 5, 6));
}

TEST(LocalMap, CallsWithLocalPartsAndLabelsOutputs) {
  const auto alone = single_process();
  const std::vector inputs{distribute(numbered({4}), Placement::shard(0), *alone).value(),
                           distribute(numbered({2}), Placement::replicate(), *alone).value()};
  const auto swap = [](std::span<const Tensor> local) -> Result<std::vector<Tensor>> {
    return std::vector{local[1], local[0]};
  };
  const auto outputs = local_map(swap, inputs, std::vector{Placement::shard(0), Placement::replicate()},
                                 std::vector{Placement::replicate(), Placement::shard(0)}, *alone)
                           .value();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(values(outputs[0].local), values(inputs[1].local));
  EXPECT_EQ(outputs[0].placement, Placement::replicate());
  EXPECT_EQ(outputs[1].placement, Placement::shard(0));
}

struct Refusal {
  std::vector<Placement> in, out;
  const char* reason;
};
TEST(LocalMap, MovesNothingSilently) {
  const auto alone = single_process();
  const std::vector inputs{distribute(numbered({4}), Placement::shard(0), *alone).value()};
  const auto same = [](std::span<const Tensor> local) -> Result<std::vector<Tensor>> {
    return std::vector(local.begin(), local.end());
  };
  const Placement cut = Placement::shard(0), whole = Placement::replicate();
  for (const Refusal& refusal : {
           Refusal{{whole}, {cut}, "input 0 lies as Shard(0): must be Replicate()"},
           Refusal{{Placement::shard(1)}, {cut}, "input 0 lies as Shard(0): must be Shard(1)"},
           Refusal{{}, {cut}, "1 inputs given: in_placements names 0"},
           Refusal{{cut, cut}, {cut}, "1 inputs given: in_placements names 2"},
           Refusal{{cut}, {}, "1 outputs returned: out_placements names 0"},
           Refusal{{cut}, {Placement::shard(1)}, "output 0 is float32 [4]: cannot be labelled Shard(1)"},
       }) {
    const Status status = local_map(same, inputs, refusal.in, refusal.out, *alone).status();
    EXPECT_EQ(status.code(), Code::invalid_argument);
    EXPECT_THAT(status.message(), HasSubstr(refusal.reason));
  }
}

TEST(LocalMap, HandsOnTheFunctionsFailure) {
  const auto fails = [](std::span<const Tensor>) -> Result<std::vector<Tensor>> {
    return Status::out_of_range("page 9: the pool has 4");
  };
  const Status status = local_map(fails, {}, {}, {}, *single_process()).status();
  EXPECT_EQ(status.code(), Code::out_of_range);
  EXPECT_EQ(status.message(), "page 9: the pool has 4");
}

TEST(ShardHeads, GivesEachRankWholeGroups) {
  const Problem problem{.query_heads = 12, .kv_heads = 6, .head_dim = 8};
  const Problem part = shard_heads(problem, PretendRank(2, 3)).value();
  EXPECT_EQ(part.query_heads, 4);
  EXPECT_EQ(part.kv_heads, 2);
  EXPECT_EQ(part.first_query_head, 8);
  EXPECT_EQ(part.head_dim, 8);
  EXPECT_EQ(shard_heads(part, PretendRank(1, 2))->first_query_head, 10) << "a shard of a shard counts on";
}

TEST(ShardHeads, NamesHeadsAndRanksThatDoNotDivide) {
  const Problem problem{.query_heads = 12, .kv_heads = 6, .head_dim = 8};
  const Status status = shard_heads(problem, PretendRank(0, 4)).status();
  EXPECT_EQ(status.code(), Code::invalid_argument);
  EXPECT_THAT(status.message(), HasSubstr("kv_heads 6: must divide by the 4 ranks"));
  EXPECT_FALSE(shard_heads(Problem{}, PretendRank(0, 1))) << "an invalid problem has no parts";
}

TEST(ShardScales, TakesEveryLayersOwnHeads) {
  PretendRank second(1, 2);
  const std::vector<float> scales{1, 2, 3, 4, 5, 6, 7, 8};  // two layers of four heads
  EXPECT_THAT(shard_scales(scales, 4, second).value(), ElementsAre(3, 4, 7, 8));
  EXPECT_THAT(shard_scales({}, 4, second).value(), ElementsAre()) << "no scales where nothing is in 8 bits";
  EXPECT_THAT(shard_scales(scales, 3, second).status().message(), HasSubstr("kv_heads 3"));
  EXPECT_THAT(shard_scales(scales, 6, second).status().message(),
              HasSubstr("8 scales: must be one for each of the 6 KV heads"));
  const KvCacheConfig cache{.layers = 2,
                            .kv_heads = 4,
                            .head_dim = 8,
                            .dtype = DType::float8_e4m3,
                            .pages = 1,
                            .key_scales = scales,
                            .value_scales = std::vector<float>(8, 0.5f)};
  const KvCacheConfig part = shard_heads(cache, second).value();
  EXPECT_EQ(part.kv_heads, 2);
  EXPECT_THAT(part.key_scales, ElementsAre(3, 4, 7, 8));
  EXPECT_EQ(part.value_scales.size(), 4u);
  EXPECT_TRUE(part.validate().is_ok());
}

}  // namespace
}  // namespace chorale
