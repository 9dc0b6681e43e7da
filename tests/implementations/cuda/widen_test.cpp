// 8-bit keys in the forward kernel: which kernels run, in what memory, and graphs of them. Bits and errors
// are gpu_test.cpp's.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>

#include "base/float.h"
#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/cuda/gpu_fixture.h"
#include "implementations/cuda/replay.h"

namespace chorale {
namespace {

using conformance::Case;
using conformance::Data;
using conformance::Passes;
using testing::Caller;
using ::testing::ElementsAre;
using testing::GpuTest;
using ::testing::HasSubstr;
using testing::OnDevice;
using testing::OnGpu;

constexpr DType codes = DType::float8_e4m3;

class Widen : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    attention_ = std::make_unique<OnGpu>(*gpu_);
  }
  static Case prefill() {
    Case test{
        .feature = "prefill and decode",
        .problem = {
            .query_heads = 4, .kv_heads = 2, .head_dim = 64, .kv_dtype = codes, .mask = mask::causal()}};
    test.sequences = {{1, 70, 1}, {40, 300, 2}, {17, 130, 3}};
    test.page_size = 16;
    return test;
  }
  std::shared_ptr<cuda::CudaPlan> plan(const Case& test, const Batch& batch) const {
    return testing::plan_of(*gpu_, test, batch);
  }

  std::unique_ptr<OnGpu> attention_;
};

TEST(WidenKeys, ServeLongQueriesAndDecodeTheOthers) {
  const Problem problem{.query_heads = 8, .kv_heads = 2, .head_dim = 128, .kv_dtype = codes};
  const cuda::Order order = cuda::order_of(128, 128);
  const auto kinds = [&](const std::vector<std::int32_t>& queries) {
    Batch batch;
    batch.cu_seqlens_q = batch.cu_seqlens_k = {0};
    for (const std::int32_t count : queries) {
      batch.cu_seqlens_q.push_back(batch.cu_seqlens_q.back() + count);
      batch.cu_seqlens_k.push_back(batch.cu_seqlens_k.back() + 100);
    }
    std::vector<cuda::KernelKind> found;
    for (const auto& key : kernel_keys(cuda::measure_work(problem, batch, order, 132), problem, order, 0))
      found.push_back(key.kind);
    return found;
  };
  using enum cuda::KernelKind;
  EXPECT_THAT(kinds({1, 8}), ElementsAre(decode));  // 32 rows
  EXPECT_THAT(kinds({9}), ElementsAre(widen, forward));
  EXPECT_THAT(kinds({1, 9}), ElementsAre(widen, forward, decode));
  // The forward kernel is the one of packed 16-bit keys.
  Problem wide = problem;
  wide.kv_dtype = std::nullopt;
  EXPECT_EQ(cuda::kernel_key(forward, problem, 16), cuda::kernel_key(forward, wide, 0));
}

// Keys of two of three heads find room at a time.
TEST_F(Widen, ManyKeysTakeSeveralLaunches) {
  Case test{.feature = "many keys",
            .problem = {.query_heads = 6,
                        .kv_heads = 3,
                        .head_dim = 256,
                        .kv_dtype = codes,
                        .mask = mask::causal() && mask::window(200),
                        .score = score::alibi(score::alibi_slopes(8)),
                        .sinks = true,
                        .first_query_head = 2}};
  test.sequences = {{40, 12000, 1}, {20, 300, 2}, {1, 50, 3}};
  test.page_size = 64;
#ifdef CHORALE_FAKE_GPU
  testing::taken_launches();
#endif
  for (const std::string& failure :
       conformance::check(*attention_, test, Device::cuda(), Passes::forward).failures)
    ADD_FAILURE() << failure;
#ifdef CHORALE_FAKE_GPU
  std::vector<std::string> entries;
  for (const auto& launch : testing::taken_launches()) entries.push_back(launch.entry);
  entries.resize(5);  // of the first of its forwards
  EXPECT_THAT(entries, ElementsAre("chorale_widen", "chorale_forward", "chorale_widen", "chorale_forward",
                                   "chorale_decode"));
#endif
}

// A captured prefill replays with other lengths and pages.
TEST_F(Widen, AGraphReplaysWithNewLengthsAndPages) {
  const Case test = prefill();
  const Data data = conformance::make_data(test);
  OnDevice device(*gpu_, data.forward());
  ASSERT_TRUE(device.to_device().is_ok());
  const auto plan = this->plan(test, data.batch);
  Caller caller(*gpu_);
  device.set_stream(caller.stream);
  ASSERT_TRUE(plan->upload(caller.stream).is_ok());
  const Status captured = caller.capture([&] { return plan->forward(device.tensors()); });
  ASSERT_TRUE(captured.is_ok()) << captured.message();
  for (const int shorter : {0, 1, 5, 29}) {
    Batch batch = data.batch;
    for (std::int32_t& length : batch.kv_lens) length -= shorter;
    // The second sequence's first two pages in the other order.
    std::swap(batch.block_table[static_cast<std::size_t>(batch.block_table_stride)],
              batch.block_table[static_cast<std::size_t>(batch.block_table_stride) + 1]);
    caller.expect_replay(*plan, batch, device, data, *attention_, fmt::format("{} shorter", shorter));
  }
}

TEST_F(Widen, APlanHasRoomForSoManyKeys) {
  const Case test = prefill();
  const Data data = conformance::make_data(test);
  const auto plan = this->plan(test, data.batch);  // 3 + 2 tiles: room for 8
  Batch longer = data.batch;
  longer.kv_lens[1] = 128 * 7;
  longer.block_table.assign(longer.block_table.size() * 4, 0);
  longer.block_table_stride *= 4;
  const Status refused = plan->update(longer, nullptr);
  EXPECT_EQ(refused.code(), Code::resource_exhausted);
  EXPECT_THAT(refused.message(), HasSubstr("room for"));
}

#ifdef CHORALE_FAKE_GPU  // which has 1 GiB
TEST_F(Widen, SaysWhatMemoryThereIsNot) {
  Case test = prefill();
  test.sequences = {{40, 300, 1}};
  const Data data = conformance::make_data(test);
  OnDevice device(*gpu_, data.forward());
  Batch many = data.batch;  // the same page again and again
  many.kv_lens[0] = (4 << 20) + 1;
  many.block_table_stride = many.kv_lens[0] / 16 + 1;
  many.block_table.assign(static_cast<std::size_t>(many.block_table_stride), 0);
  const auto too_large = plan(test, many);
  const Status status = too_large->forward(device.tensors());
  EXPECT_EQ(status.code(), Code::resource_exhausted);
  EXPECT_THAT(status.message(),
              ::testing::AllOf(
                  HasSubstr("a plan's "), HasSubstr("1073741824 free"),
                  HasSubstr("2147483648 bytes are for 8-bit keys as bfloat16, of 1 KV heads at a time")));
  EXPECT_TRUE(plan(test, data.batch)->forward(device.tensors()).is_ok()) << "the next plan works";
}
#endif

}  // namespace
}  // namespace chorale
