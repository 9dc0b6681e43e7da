// One plan in several streams, threads and graphs at once: each gets what it gets alone, since it has memory
// of its own.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "implementations/conformance/case.h"
#include "implementations/cuda/gpu_fixture.h"
#include "implementations/cuda/replay.h"

namespace chorale {
namespace {

using conformance::Case;
using conformance::Data;
using testing::Caller;
using testing::GpuTest;
using testing::OnDevice;
using testing::plan_of;

#ifdef CHORALE_FAKE_GPU  // which is slow
constexpr int runs = 3, head_dim = 64, query_heads = 2, kv_heads = 1, long_sequences = 1, decoding = 4;
#else  // launches that overlap, with more items than the card has multiprocessors
constexpr int runs = 30, head_dim = 128, query_heads = 8, kv_heads = 2, long_sequences = 8, decoding = 100;
#endif

enum class Work { prefill, decode, codes };
std::string work_name(const ::testing::TestParamInfo<Work>& entry) {
  return entry.param == Work::prefill ? "prefill" : entry.param == Work::decode ? "decode" : "codes";
}

// Inputs differ from `number` to `number`.
Case case_of(Work work, std::uint64_t number) {
  Case test{.feature = "streams",
            .problem = {.query_heads = query_heads,
                        .kv_heads = kv_heads,
                        .head_dim = head_dim,
                        .mask = mask::causal()},
            .page_size = 16};
  std::uint64_t content = 1000 * number;
  const auto add = [&](std::int32_t queries, std::int32_t keys) {
    test.sequences.push_back({queries, keys, content++});
  };
  for (int i = 0; i < long_sequences; ++i) add(130, 130 + 70 * i);
  for (int i = 0; i < decoding; ++i) add(1, 1 + (i * 773 + 1500) % 2500);  // up to three chunks
  if (work == Work::decode)
    for (conformance::Sequence& s : test.sequences) s.queries = 1;
  if (work == Work::codes) test.problem.kv_dtype = DType::float8_e4m3;
  if (work == Work::prefill) {
    std::vector<std::int32_t> ids(2600);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i / 90);
    test.tables = {Table::integers("document", std::move(ids))};
    test.problem.mask = mask::causal() && mask::document(test.tables[0]);
  }
  return test;
}

// Runs one plan again and again in a stream, on inputs of its own. Every run has an output of its own, which
// holds NaN before.
class Runner {
 public:
  Runner(cuda::Gpu& gpu, const Case& test, Caller& caller)
      : gpu_(gpu), caller_(caller), data_(conformance::make_data(test)), device_(gpu, data_.forward()) {
    EXPECT_TRUE(device_.to_device().is_ok());
    bytes_ = static_cast<std::size_t>(data_.out.view.elements()) * size_of(data_.out.view.dtype);
    outs_ = cuda::DeviceMemory::allocate(gpu, (runs + 1) * bytes_).value();
    fill();
  }
  const Batch& batch() const { return data_.batch; }
  Caller& caller() const { return caller_; }

  // Of a run; run `runs` is what the others should give.
  ForwardTensors tensors(int run) const {
    ForwardTensors tensors = device_.tensors();
    tensors.out = TensorView::contiguous(
        reinterpret_cast<void*>(outs_->address() + static_cast<std::size_t>(run) * bytes_), tensors.out.dtype,
        {tensors.out.shape[0], tensors.out.shape[1], tensors.out.shape[2]});
    tensors.lse = {};
    tensors.stream = caller_.stream;
    return tensors;
  }
  Status capture(const cuda::CudaPlan& plan, const std::function<void()>& before_the_last = {}) const {
    return caller_.capture([&] {
      for (int run = 0; run < runs; ++run) {
        if (run == runs - 1 && before_the_last) before_the_last();
        CHORALE_RETURN_IF_ERROR(plan.forward(tensors(run)));
      }
      return Status::ok();
    });
  }
  // In the order of the stream.
  void fill() const {
    const cuda::Gpu::Scope scope(gpu_);
    EXPECT_EQ(gpu_.driver().fill_bytes(outs_->address(), 0xFF, (runs + 1) * bytes_, caller_.stream), 0);
  }
  // Runs whose output is not, to the bit, what a plan that is nobody else's gives. The runs had these batches
  // in turn. Waits.
  std::vector<int> wrong(const Case& test, const std::vector<Batch>& batches) const {
    std::vector<std::byte> outs((runs + 1) * bytes_);
    std::vector<std::vector<std::byte>> expected;
    for (const Batch& batch : batches) {
      EXPECT_TRUE(plan_of(gpu_, test, batch)->forward(tensors(runs)).is_ok());
      copy_to_host(outs);
      expected.emplace_back(outs.end() - static_cast<std::ptrdiff_t>(bytes_), outs.end());
    }
    std::vector<int> wrong;
    for (std::size_t run = 0; run < runs; ++run)
      if (std::memcmp(outs.data() + run * bytes_, expected[run % batches.size()].data(), bytes_) != 0)
        wrong.push_back(static_cast<int>(run));
    return wrong;
  }

 private:
  void copy_to_host(std::vector<std::byte>& bytes) const {
    const cuda::Gpu::Scope scope(gpu_);
    EXPECT_EQ(gpu_.driver().copy_to_host(bytes.data(), outs_->address(), bytes.size(), caller_.stream), 0);
    EXPECT_EQ(gpu_.driver().synchronize_stream(caller_.stream), 0);
  }

  cuda::Gpu& gpu_;
  Caller& caller_;
  Data data_;
  OnDevice device_;
  std::size_t bytes_ = 0;
  std::unique_ptr<cuda::DeviceMemory> outs_;
};

class Streams : public GpuTest, public ::testing::WithParamInterface<Work> {
 protected:
  std::shared_ptr<cuda::CudaPlan> plan(const Batch& batch) const {
    return plan_of(*gpu_, case_of(GetParam(), 0), batch);
  }
  static Batch shorter(Batch batch, int by) {
    for (std::int32_t& length : batch.kv_lens) length = std::max(1, length - by);
    for (std::size_t s = 0; s < batch.kv_lens.size(); ++s)
      batch.kv_lens[s] = std::max(batch.kv_lens[s], batch.q_len(static_cast<int>(s)));
    return batch;
  }
};
INSTANTIATE_TEST_SUITE_P(Work, Streams, ::testing::Values(Work::prefill, Work::decode, Work::codes),
                         work_name);

// Two threads in one stream, one in another, and replays of two graphs.
TEST_P(Streams, ThreadsStreamsAndGraphsOfOnePlanGetWhatEachGetsAlone) {
  Caller shared(*gpu_), other(*gpu_), replayed(*gpu_), replayed_too(*gpu_);
  std::vector<std::unique_ptr<Runner>> runners;
  for (Caller* caller : {&shared, &shared, &other, &replayed, &replayed_too})
    runners.push_back(std::make_unique<Runner>(*gpu_, case_of(GetParam(), runners.size()), *caller));
  const auto plan = this->plan(runners[0]->batch());
  for (const std::size_t i : {3u, 4u}) {
    const Status captured = runners[i]->capture(*plan);
    ASSERT_TRUE(captured.is_ok()) << captured.message();
  }
  for (const auto& runner : runners) ASSERT_EQ(runner->batch().block_table, runners[0]->batch().block_table);

  std::barrier together(static_cast<std::ptrdiff_t>(runners.size()));
  std::vector<std::thread> threads;
  threads.reserve(runners.size());
  for (std::size_t i = 0; i < runners.size(); ++i)
    threads.emplace_back([&, i] {
      together.arrive_and_wait();
      if (i >= 3) return runners[i]->caller().replay();
      for (int run = 0; run < runs; ++run) EXPECT_TRUE(plan->forward(runners[i]->tensors(run)).is_ok());
    });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < runners.size(); ++i)
    EXPECT_THAT(runners[i]->wrong(case_of(GetParam(), i), {runners[i]->batch()}), ::testing::IsEmpty())
        << "runs of runner " << i;
}

TEST_P(Streams, UpdateReachesEveryStreamAndGraph) {
  Caller first(*gpu_), second(*gpu_), replayed(*gpu_);
  std::vector<std::unique_ptr<Runner>> runners;
  for (Caller* caller : {&first, &second, &replayed})
    runners.push_back(std::make_unique<Runner>(*gpu_, case_of(GetParam(), runners.size()), *caller));
  const Batch before = runners[0]->batch(), after = shorter(before, 40);
  const auto plan = this->plan(before);
  ASSERT_TRUE(runners[2]->capture(*plan).is_ok());
  for (const Batch& batch : {before, after, before}) {
    ASSERT_TRUE(plan->update(batch, replayed.stream).is_ok());
    for (const auto& runner : runners) runner->fill();
    for (int run = 0; run < runs; ++run)
      for (const std::size_t i : {0u, 1u}) ASSERT_TRUE(plan->forward(runners[i]->tensors(run)).is_ok());
    replayed.replay();
    for (std::size_t i = 0; i < runners.size(); ++i)
      EXPECT_THAT(runners[i]->wrong(case_of(GetParam(), i), {batch}), ::testing::IsEmpty())
          << "runs of runner " << i;
  }
}

TEST_P(Streams, AnUpdateIsNoPartOfACapture) {
  Caller caller(*gpu_);
  const Case test = case_of(GetParam(), 0);
  const Runner runner(*gpu_, test, caller);
  const auto plan = this->plan(runner.batch());
  ASSERT_TRUE(runner
                  .capture(*plan,
                           [&] {
                             EXPECT_THAT(plan->update(shorter(runner.batch(), 40), caller.stream).message(),
                                         ::testing::HasSubstr("is being captured"));
                           })
                  .is_ok());
  caller.replay();
  EXPECT_THAT(runner.wrong(test, {runner.batch()}), ::testing::IsEmpty());
}

// The host is ahead of the stream: what an update replaces is still to be copied.
TEST_P(Streams, UpdatesFollowOneAnother) {
  Caller caller(*gpu_);
  const Case test = case_of(GetParam(), 0);
  const Runner runner(*gpu_, test, caller);
  const std::vector<Batch> batches{runner.batch(), shorter(runner.batch(), 40), shorter(runner.batch(), 70)};
  const auto plan = this->plan(batches[0]);
  for (std::size_t run = 0; run < runs; ++run) {
    ASSERT_TRUE(plan->update(batches[run % batches.size()], caller.stream).is_ok());
    ASSERT_TRUE(plan->forward(runner.tensors(static_cast<int>(run))).is_ok());
  }
  EXPECT_THAT(runner.wrong(test, batches), ::testing::IsEmpty());
}

// So is what a plan leaves behind, in the slower of two streams.
TEST_P(Streams, PlansFollowOneAnother) {
  Caller slow(*gpu_), fast(*gpu_);
  const Case test = case_of(GetParam(), 0);
  const Runner in_slow(*gpu_, test, slow), in_fast(*gpu_, test, fast);
  const std::vector<Batch> batches{in_slow.batch(), shorter(in_slow.batch(), 40),
                                   shorter(in_slow.batch(), 70)};
  const auto forward = [&](const cuda::CudaPlan& plan, std::size_t run) {
    for (const Runner* runner : {&in_slow, &in_fast})
      EXPECT_TRUE(plan.forward(runner->tensors(static_cast<int>(run))).is_ok());
  };
  forward(*plan(batches[0]), 0);  // it leaves memory for the next ones: to free some would wait
  for (int i = 0; i < 20; ++i) in_slow.fill();
  in_fast.fill();
  for (std::size_t run = 0; run < runs; ++run) {
    forward(*plan(batches[run % batches.size()]), run);
    const cuda::Gpu::Scope scope(*gpu_);
    ASSERT_EQ(gpu_->driver().synchronize_stream(fast.stream), 0);
  }
  for (const Runner* runner : {&in_slow, &in_fast})
    EXPECT_THAT(runner->wrong(test, batches), ::testing::IsEmpty());
}

#ifdef CHORALE_FAKE_GPU
// What the launches of a stream write of plans' memory, where there are no others.
std::set<const void*> written(const cuda::Gpu& gpu, const Caller& caller) {
  EXPECT_EQ(gpu.driver().synchronize_stream(caller.stream), 0);
  std::set<const void*> all;
  for (const auto& launch : testing::taken_launches())
    all.insert(launch.written.begin(), launch.written.end());
  return all;
}
int common(const std::set<const void*>& some, const std::set<const void*>& others) {
  return static_cast<int>(
      std::ranges::count_if(some, [&](auto address) { return others.contains(address); }));
}

TEST_P(Streams, NothingIsWrittenByTwoThatRunAtOnce) {
  const Case test = case_of(GetParam(), 0);
  testing::taken_launches();
  Caller a(*gpu_), b(*gpu_);
  Caller graphs[] = {Caller(*gpu_), Caller(*gpu_)};
  const Runner in_a(*gpu_, test, a), in_b(*gpu_, test, b);
  const auto plan = this->plan(in_a.batch());
  const auto forward = [&](const Runner& runner) {
    EXPECT_TRUE(plan->forward(runner.tensors(0)).is_ok());
    return written(*gpu_, runner.caller());
  };
  std::vector<std::set<const void*>> all{forward(in_a), forward(in_b)};
  EXPECT_EQ(forward(in_a), all[0]);
  for (Caller& graph : graphs) {
    const Runner runner(*gpu_, test, graph);
    ASSERT_TRUE(runner.capture(*plan).is_ok());
    graph.replay();
    all.push_back(written(*gpu_, graph));
    graph.replay();
    EXPECT_EQ(written(*gpu_, graph), all.back());
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_FALSE(all[i].empty());
    for (std::size_t j = 0; j < i; ++j) EXPECT_EQ(common(all[i], all[j]), 0) << i << ", " << j;
  }
}

TEST_P(Streams, MemoryGoesBackToTheStreamThatUsedIt) {
  const Case test = case_of(GetParam(), 0);
  testing::taken_launches();
  Caller a(*gpu_), b(*gpu_), graph(*gpu_);
  const Runner in_a(*gpu_, test, a), in_b(*gpu_, test, b), captured(*gpu_, test, graph);
  const auto forward = [&](const cuda::CudaPlan& plan, const Runner& runner) {
    EXPECT_TRUE(plan.forward(runner.tensors(0)).is_ok());
    return written(*gpu_, runner.caller());
  };
  auto plan = this->plan(in_a.batch());
  const auto of_a = forward(*plan, in_a), of_b = forward(*plan, in_b);
  ASSERT_TRUE(captured.capture(*plan).is_ok());
  graph.replay();
  const auto of_graph = written(*gpu_, graph);
  EXPECT_TRUE(std::ranges::all_of(of_graph, testing::fake_memory_of));
  plan.reset();
  EXPECT_TRUE(std::ranges::all_of(of_a, testing::fake_memory_of));
  EXPECT_TRUE(std::ranges::none_of(of_graph, testing::fake_memory_of)) << "it was no stream's";
  const auto later = this->plan(in_a.batch()), beside = this->plan(in_a.batch());
  EXPECT_EQ(forward(*later, in_b), of_b);
  EXPECT_EQ(forward(*later, in_a), of_a);
  EXPECT_EQ(common(forward(*beside, in_a), of_a), 0) << "two plans of one stream";
  EXPECT_EQ(common(forward(*beside, in_b), of_b), 0);
}
#endif

}  // namespace
}  // namespace chorale
