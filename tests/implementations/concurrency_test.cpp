// Two threads that use one Attention at once each get what they would get alone.
#include <thread>

#include "chorale/attention.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::Data;

class Concurrency : public EveryImplementation {};
INSTANTIATE_TEST_SUITE_P(Implementations, Concurrency, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Concurrency, TwoThreadsShareOneAttention) {
  Case test{.feature = "concurrency",
            .problem = {.query_heads = 4,
                        .kv_heads = 2,
                        .head_dim = 16,
                        .dtype = DType::float32,
                        .mask = mask::causal() && mask::window(50)},
            .sequences = {{30, 30, 1}, {1, 130, 2}, {70, 70, 3}}};
  const Attention attention(test.problem, implementation(), Device::cpu(2));
  const auto use = [&](const Case& mine, const Plan& plan, int times, std::vector<Data>& results) {
    for (int i = 0; i < times; ++i) {
      Data data = conformance::make_data(mine, Background::zeros);
      ASSERT_TRUE(attention.forward(plan, data.forward()).is_ok());
      ASSERT_TRUE(attention.backward(plan, data.backward()).is_ok());
      results.push_back(std::move(data));
    }
  };
  // The same plan, different tensors: the second seed is the second thread's.
  const auto plan = attention.plan(conformance::make_data(test, Background::zeros).batch).value();
  std::vector<Data> alone[2], together[2];
  for (int i = 0; i < 2; ++i) {
    test.seed = static_cast<std::uint64_t>(i);
    use(test, *plan, 1, alone[i]);
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    test.seed = static_cast<std::uint64_t>(i);
    threads.emplace_back([&, i, mine = test] { use(mine, *plan, 4, together[i]); });
  }
  for (auto& thread : threads) thread.join();

  EXPECT_FALSE(conformance::same_bits(alone[0][0].grad_k, alone[1][0].grad_k))
      << "the two threads must have different work";
  for (int i = 0; i < 2; ++i) {
    for (const Data& data : together[i]) {
      EXPECT_TRUE(conformance::same_bits(data.out, alone[i][0].out));
      EXPECT_TRUE(conformance::same_bits(data.lse, alone[i][0].lse));
      EXPECT_TRUE(conformance::same_bits(data.grad_q, alone[i][0].grad_q));
      EXPECT_TRUE(conformance::same_bits(data.grad_k, alone[i][0].grad_k));
      EXPECT_TRUE(conformance::same_bits(data.grad_v, alone[i][0].grad_v));
    }
  }
}

}  // namespace
}  // namespace chorale
