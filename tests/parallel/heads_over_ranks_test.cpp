// Run by mpiexec at several numbers of ranks (CMakeLists.txt): what ranks compute together has the bits of
// what one computes alone, and what goes wrong on one of them is known to all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <random>

#include "base/float.h"
#include "chorale/chorale.h"

namespace chorale {
namespace {

using ::testing::HasSubstr;

Communicator& world() {
  static const std::shared_ptr<Communicator> ranks = mpi_world().value();
  return *ranks;
}

Tensor random_tensor(DType dtype, std::initializer_list<std::int64_t> shape, unsigned seed) {
  Tensor tensor = Tensor::zeros(dtype, shape);
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (std::int64_t i = 0; i < tensor.elements(); ++i)
    store_element(tensor.view().data, dtype, i, uniform(generator));
  return tensor;
}

void expect_same_bits(const Tensor& actual, const Tensor& expected, const char* what) {
  ASSERT_EQ(actual.view().describe(), expected.view().describe()) << what;
  const auto size = static_cast<std::int64_t>(size_of(actual.dtype()));
  const auto* a = static_cast<const std::byte*>(actual.view().data);
  const auto* b = static_cast<const std::byte*>(expected.view().data);
  for (std::int64_t i = 0; i < actual.elements(); ++i)
    ASSERT_EQ(std::memcmp(a + i * size, b + i * size, static_cast<std::size_t>(size)), 0)
        << what << " differs first at element " << i << ": " << load_element(a, actual.dtype(), i) << " on "
        << world().size() << " ranks, " << load_element(b, actual.dtype(), i) << " on one";
}

// Four groups of two heads that all differ: ALiBi's slope depends on the global head, and so does each sink.
struct Workload {
  Problem problem;
  Batch batch;
  Tensor q, k, v, sinks, grad_out;  // inputs, in this order everywhere below

  std::vector<Tensor> inputs() const { return {q, k, v, sinks, grad_out}; }
};
const char* const output_names[] = {"out", "lse", "grad_q", "grad_k", "grad_v", "grad_sinks"};

Workload packed_workload(DType dtype) {
  const Problem problem{.query_heads = 8,
                        .kv_heads = 4,
                        .head_dim = 16,
                        .value_head_dim = 24,
                        .dtype = dtype,
                        .mask = mask::causal() && mask::window(100),
                        .score = score::alibi(score::alibi_slopes(8)),
                        .sinks = true};
  const Batch batch = Batch::packed({0, 3, 73, 74, 204});
  return {problem,
          batch,
          random_tensor(dtype, {204, 8, 16}, 1),
          random_tensor(dtype, {204, 4, 16}, 2),
          random_tensor(dtype, {204, 4, 24}, 3),
          random_tensor(DType::float32, {8}, 4),
          random_tensor(dtype, {204, 8, 24}, 5)};
}

// Two sequences in pages of 16, out of order.
Workload paged_workload(DType dtype) {
  Workload workload = packed_workload(dtype);
  const std::vector<std::vector<std::int32_t>> tables{{5, 0, 3}, {2, 4}};
  workload.batch = Batch::paged({0, 40, 47}, {40, 20}, 16, tables).value();
  workload.q = random_tensor(dtype, {47, 8, 16}, 1);
  workload.k = random_tensor(dtype, {6, 16, 4, 16}, 2);
  workload.v = random_tensor(dtype, {6, 16, 4, 24}, 3);
  workload.grad_out = random_tensor(dtype, {47, 8, 24}, 5);
  return workload;
}

// Forward and backward over some of the heads: what each rank does with its own.
Result<std::vector<Tensor>> attend(const char* implementation, const Problem& problem, const Batch& batch,
                                   std::span<const Tensor> inputs) {
  CHORALE_ASSIGN_OR_RETURN(
      const Attention attention,
      Attention::create(problem, implementation, Device::cpu(), {Phase::forward, Phase::backward}));
  CHORALE_ASSIGN_OR_RETURN(const auto plan, attention.plan(batch));
  const Tensor &q = inputs[0], &k = inputs[1], &v = inputs[2], &sinks = inputs[3], &grad_out = inputs[4];
  const std::int64_t rows = q.shape(0), keys = batch.total_k();
  const Tensor out = Tensor::zeros(problem.dtype, {rows, problem.query_heads, problem.value_dim()});
  const Tensor lse = Tensor::zeros(DType::float32, {rows, problem.query_heads});
  const Tensor grad_q = Tensor::zeros(problem.dtype, {rows, problem.query_heads, problem.head_dim});
  const Tensor grad_k = Tensor::zeros(problem.dtype, {keys, problem.kv_heads, problem.head_dim});
  const Tensor grad_v = Tensor::zeros(problem.dtype, {keys, problem.kv_heads, problem.value_dim()});
  const Tensor grad_sinks = Tensor::zeros(DType::float32, {problem.query_heads});
  CHORALE_RETURN_IF_ERROR(
      attention.forward(*plan, {.q = q, .k = k, .v = v, .out = out, .lse = lse, .sinks = sinks}));
  CHORALE_RETURN_IF_ERROR(attention.backward(*plan, {.q = q,
                                                     .k = k,
                                                     .v = v,
                                                     .out = out,
                                                     .lse = lse,
                                                     .sinks = sinks,
                                                     .grad_out = grad_out,
                                                     .grad_q = grad_q,
                                                     .grad_k = grad_k,
                                                     .grad_v = grad_v,
                                                     .grad_sinks = grad_sinks}));
  return std::vector{out, lse, grad_q, grad_k, grad_v, grad_sinks};
}

// The same over all ranks, gathered.
std::vector<Tensor> attend_over_ranks(const char* implementation, const Problem& part,
                                      const Workload& workload) {
  const Placement heads = Placement::shard(1);
  const Placement kv_heads = Placement::shard(workload.batch.is_paged() ? 2 : 1);
  const Placement sinks = Placement::shard(0);
  const std::vector in{heads, kv_heads, kv_heads, sinks, heads};
  const std::vector out{heads, heads, heads, heads, heads, sinks};
  std::vector<DistributedTensor> inputs;
  for (std::size_t i = 0; i < in.size(); ++i)
    inputs.push_back(distribute(workload.inputs()[i], in[i], world()).value());
  const auto function = [&](std::span<const Tensor> local) {
    return attend(implementation, part, workload.batch, local);
  };
  std::vector<Tensor> whole;
  for (const DistributedTensor& output : local_map(function, inputs, in, out, world()).value())
    whole.push_back(output.full(world()).value());
  return whole;
}

class HeadsOverRanks : public ::testing::TestWithParam<std::tuple<const char*, DType, bool>> {
 protected:
  const char* implementation() const { return std::get<0>(GetParam()); }
  Workload workload() const {
    const DType dtype = std::get<1>(GetParam());
    return std::get<2>(GetParam()) ? paged_workload(dtype) : packed_workload(dtype);
  }
};

TEST_P(HeadsOverRanks, HaveTheBitsOfOneRank) {
  const Workload whole = workload();
  const auto expected = attend(implementation(), whole.problem, whole.batch, whole.inputs()).value();
  const auto actual = attend_over_ranks(implementation(), shard_heads(whole.problem, world()).value(), whole);
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) expect_same_bits(actual[i], expected[i], output_names[i]);
}

// The control: where a rank takes its first head for head 0, ALiBi's slopes are wrong and everything differs.
TEST_P(HeadsOverRanks, DifferIfTheGlobalHeadIsForgotten) {
  if (world().size() == 1) GTEST_SKIP() << "the only rank's first head is head 0";
  const Workload whole = workload();
  const auto expected = attend(implementation(), whole.problem, whole.batch, whole.inputs()).value();
  Problem forgetful = shard_heads(whole.problem, world()).value();
  forgetful.first_query_head = 0;
  const auto actual = attend_over_ranks(implementation(), forgetful, whole);
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NE(std::memcmp(actual[i].view().data, expected[i].view().data, expected[i].bytes()), 0)
        << output_names[i];
}

std::string case_name(const ::testing::TestParamInfo<HeadsOverRanks::ParamType>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::string(name(std::get<1>(info.param))) +
         (std::get<2>(info.param) ? "_paged" : "_packed");
}
INSTANTIATE_TEST_SUITE_P(
    All, HeadsOverRanks,
    ::testing::Combine(::testing::Values("eager", "flash_attention_2"),
                       ::testing::Values(DType::float32, DType::bfloat16, DType::float16), ::testing::Bool()),
    case_name);

// A cache of 8-bit codes on every rank, of its own heads with their own scales, attended over.
Result<Tensor> attend_to_codes(const char* implementation, const Problem& problem,
                               const KvCacheConfig& config, const Tensor& q, const Tensor& k,
                               const Tensor& v) {
  CHORALE_ASSIGN_OR_RETURN(KvCache cache, KvCache::create(config));
  const auto sequence = cache.add();
  CHORALE_ASSIGN_OR_RETURN(const auto slots, cache.append(sequence, k.shape(0)));
  constexpr int layer = 1;  // not the first, so that its scales do not begin the list
  CHORALE_RETURN_IF_ERROR(cache.store(layer, slots, k, v));
  CHORALE_ASSIGN_OR_RETURN(
      const Attention attention,
      Attention::create(problem, implementation, Device::cpu(), {Phase::prefill, Phase::decode}));
  const auto tokens = static_cast<std::int32_t>(q.shape(0));
  CHORALE_ASSIGN_OR_RETURN(const Batch batch, cache.batch(std::array{sequence}, std::array{tokens}));
  CHORALE_ASSIGN_OR_RETURN(const auto plan, attention.plan(batch));
  const Tensor out = Tensor::zeros(problem.dtype, {tokens, problem.query_heads, problem.value_dim()});
  CHORALE_RETURN_IF_ERROR(attention.forward(*plan, {.q = q,
                                                    .k = cache.keys(layer),
                                                    .v = cache.values(layer),
                                                    .out = out,
                                                    .k_scale = cache.key_scales(layer),
                                                    .v_scale = cache.value_scales(layer)}));
  return out;
}

struct CodesOverRanks : ::testing::TestWithParam<const char*> {
  Problem problem{.query_heads = 8,
                  .kv_heads = 4,
                  .head_dim = 16,
                  .dtype = DType::bfloat16,
                  .kv_dtype = DType::float8_e4m3};
  KvCacheConfig cache{.layers = 2,
                      .kv_heads = 4,
                      .head_dim = 16,
                      .dtype = DType::float8_e4m3,
                      .pages = 8,
                      .key_scales = {1, 1, 1, 1, 0.013f, 0.021f, 0.0055f, 0.11f},
                      .value_scales = {1, 1, 1, 1, 0.027f, 0.0071f, 0.33f, 0.019f}};
  Tensor q = random_tensor(DType::bfloat16, {70, 8, 16}, 1),
         k = random_tensor(DType::bfloat16, {70, 4, 16}, 2),
         v = random_tensor(DType::bfloat16, {70, 4, 16}, 3);

  Tensor over_ranks(const KvCacheConfig& part) const {
    const Placement heads = Placement::shard(1);
    std::vector<DistributedTensor> inputs;
    for (const Tensor& whole : {q, k, v}) inputs.push_back(distribute(whole, heads, world()).value());
    const auto attend = [&](std::span<const Tensor> own) -> Result<std::vector<Tensor>> {
      CHORALE_ASSIGN_OR_RETURN(const Problem own_heads, shard_heads(problem, world()));
      CHORALE_ASSIGN_OR_RETURN(Tensor out,
                               attend_to_codes(GetParam(), own_heads, part, own[0], own[1], own[2]));
      return std::vector{std::move(out)};
    };
    const std::vector in(3, heads), out{heads};
    return local_map(attend, inputs, in, out, world()).value()[0].full(world()).value();
  }
};

TEST_P(CodesOverRanks, HaveTheBitsOfOneRank) {
  const Tensor whole = attend_to_codes(GetParam(), problem, cache, q, k, v).value();
  expect_same_bits(over_ranks(shard_heads(cache, world()).value()), whole, "out");
}

// The control: every rank takes the first heads' scales for its own.
TEST_P(CodesOverRanks, DifferIfTheScalesAreNotCut) {
  if (world().size() == 1) GTEST_SKIP() << "the only rank's heads are all heads";
  const Tensor whole = attend_to_codes(GetParam(), problem, cache, q, k, v).value();
  KvCacheConfig part = shard_heads(cache, world()).value();
  const auto own = static_cast<std::size_t>(part.kv_heads);
  for (std::size_t head = 0; head < own; ++head) part.key_scales[own + head] = cache.key_scales[4 + head];
  const Tensor wrong = over_ranks(part);
  EXPECT_NE(std::memcmp(wrong.view().data, whole.view().data, whole.bytes()), 0);
}

INSTANTIATE_TEST_SUITE_P(All, CodesOverRanks, ::testing::Values("eager", "flash_attention_2"));

TEST(ShardHeads, RefusesHeadsThatDoNotDivide) {
  if (world().size() == 1) GTEST_SKIP() << "everything divides by one rank";
  const int kv_heads = world().size() + 1;
  const Problem problem{.query_heads = 2 * kv_heads, .kv_heads = kv_heads, .head_dim = 8};
  const std::string message = shard_heads(problem, world()).status().message();
  EXPECT_THAT(message, HasSubstr("kv_heads " + std::to_string(kv_heads)));
  EXPECT_THAT(message, HasSubstr("the " + std::to_string(world().size()) + " ranks"));
}

TEST(MpiWorld, GathersAlongEveryDimensionAndStride) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::float8_e4m3}) {
    const std::int64_t n = world().size();
    const Tensor whole = random_tensor(dtype, {2 * n, 3 * n, 4 * n}, 7);
    for (int dimension = 0; dimension < 3; ++dimension) {
      // The shard as a view into the whole: its strides are not its own.
      const std::int64_t part = whole.shape(dimension) / n;
      const TensorView mine =
          whole.view().slice(dimension, part * world().rank(), part * (world().rank() + 1));
      expect_same_bits(world().all_gather(mine, dimension).value(), whole, "gathered from a strided view");
      const auto cut = distribute(whole, Placement::shard(dimension), world()).value();
      expect_same_bits(cut.full(world()).value(), whole, "gathered from a shard");
    }
  }
}

TEST(MpiWorld, GathersNothing) {
  const Tensor none = Tensor::zeros(DType::float32, {2, 0, 3});
  EXPECT_EQ(world().all_gather(none, 1).value().elements(), 0);
  EXPECT_EQ(world().all_gather(none, 0).value().shape(0), 2 * world().size());
}

TEST(MpiWorld, EveryRankLearnsThatShardsAreUnlike) {
  if (world().size() == 1) GTEST_SKIP() << "one shard is always like itself";
  const bool odd = world().rank() == 1;
  const Status lengths = world().all_gather(Tensor::zeros(DType::float32, {odd ? 3 : 2}), 0).status();
  EXPECT_THAT(lengths.message(), HasSubstr("float32 [3] along 0"));
  EXPECT_THAT(lengths.message(), HasSubstr("must be alike on all ranks"));
  EXPECT_FALSE(world().all_gather(Tensor::zeros(odd ? DType::bfloat16 : DType::float32, {2}), 0));
  EXPECT_FALSE(world().all_gather(Tensor::zeros(DType::float32, {2, 2}), odd ? 1 : 0));
  const Status range = world().all_gather(Tensor::zeros(DType::float32, {2}), odd ? 5 : 0).status();
  EXPECT_THAT(range.message(), HasSubstr(odd ? "dimension 5" : "rank 1 has something unusable"));
  EXPECT_TRUE(world().barrier().is_ok()) << "and nobody is left behind";
}

TEST(LocalMap, EveryRankLearnsThatOneFailed) {
  if (world().size() == 1) GTEST_SKIP() << "there is nobody to tell";
  const auto fails_on_rank_1 = [](std::span<const Tensor>) -> Result<std::vector<Tensor>> {
    if (world().rank() == 1) return Status::out_of_range("page 9: the pool has 4");
    return std::vector<Tensor>{};
  };
  const Status status = local_map(fails_on_rank_1, {}, {}, {}, world()).status();
  EXPECT_EQ(status.code(), Code::out_of_range);
  EXPECT_THAT(status.message(), HasSubstr(world().rank() == 1 ? "page 9" : "rank 1 failed (out of range)"));
}

// Not among the others: CMakeLists.txt runs it alone and expects the launcher to end the ranks that wait.
TEST(MpiWorld, DISABLED_ARankThatFailsKeepsNobodyWaiting) {
  if (world().rank() == world().size() - 1) std::exit(7);
  (void)world().barrier();
}

}  // namespace
}  // namespace chorale
