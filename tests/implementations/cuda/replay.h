// CUDA graphs of a plan's forward, as a caller of the driver captures and replays them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "base/float.h"
#include "implementations/conformance/cases.h"
#include "implementations/cuda/on_gpu.h"

namespace chorale::testing {

// A stream of the caller's own, and the graph that it captured there. Gives both back.
class Caller {
 public:
  explicit Caller(const cuda::Gpu& gpu) : gpu_(gpu) {
    const cuda::Gpu::Scope scope(gpu_);
    EXPECT_EQ(gpu_.driver().create_stream(&stream, 1), 0);
  }
  ~Caller() {
    const cuda::Gpu::Scope scope(gpu_);
    const cuda::Driver& d = gpu_.driver();
    if (replay_ != nullptr) d.destroy_graph_exec(replay_);
    d.destroy_stream(stream);
  }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  // What `work` said, whose launches in the stream are captured and made ready to replay.
  template <class F>
  Status capture(F&& work) {
    const cuda::Gpu::Scope scope(gpu_);
    const cuda::Driver& d = gpu_.driver();
    EXPECT_EQ(d.begin_capture(stream, cuda::driver_constants::capture_thread_local), 0);
    Status captured = work();
    cuda::Graph graph = nullptr;
    EXPECT_EQ(d.end_capture(stream, &graph), 0);
    if (captured.is_ok()) EXPECT_EQ(d.instantiate_graph(&replay_, graph, 0), 0);
    d.destroy_graph(graph);
    return captured;
  }
  void replay() const {
    const cuda::Gpu::Scope scope(gpu_);
    ASSERT_EQ(gpu_.driver().launch_graph(replay_, stream), 0);
  }
  // Puts a batch into the plan that was captured, and replays: as a fresh plan of that batch gives. `device`
  // has `data`'s tensors; `attention` reads and writes them where they are.
  void expect_replay(cuda::CudaPlan& plan, const Batch& batch, OnDevice& device,
                     const conformance::Data& data, const Implementation& attention,
                     const std::string& what) const {
    const Status updated = plan.update(batch, stream);
    ASSERT_TRUE(updated.is_ok()) << updated.message();
    replay();
    ASSERT_TRUE(device.to_host().is_ok());
    const Tensor replayed = data.out.memory.clone();
    const auto fresh = attention.plan(plan.problem(), batch, Device::cuda()).value();
    ASSERT_TRUE(attention.forward(*fresh, data.forward()).is_ok());
    EXPECT_TRUE(std::ranges::equal(replayed.as<bfloat16>(), data.out.memory.as<bfloat16>())) << what;
  }

  cuda::Stream stream = nullptr;

 private:
  const cuda::Gpu& gpu_;
  cuda::GraphExec replay_ = nullptr;
};

}  // namespace chorale::testing
