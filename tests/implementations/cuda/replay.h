// CUDA graphs of a plan's forward, as a caller of the driver captures and replays them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

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
    drop_graph();
    d.destroy_stream(stream);
  }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  // What the plan said to a forward whose launches are captured.
  Status capture(const cuda::CudaPlan& plan, const ForwardTensors& tensors) {
    const cuda::Gpu::Scope scope(gpu_);
    const cuda::Driver& d = gpu_.driver();
    drop_graph();
    EXPECT_EQ(d.begin_capture(stream, cuda::driver_constants::capture_thread_local), 0);
    Status captured = plan.forward(tensors);
    EXPECT_EQ(d.end_capture(stream, &graph_), 0);
    return captured;
  }
  void instantiate() {
    const cuda::Gpu::Scope scope(gpu_);
    ASSERT_EQ(gpu_.driver().instantiate_graph(&replay_, graph_, 0), 0);
  }
  // Puts a batch into the plan that was captured, and replays: as a fresh plan of that batch gives. `device`
  // has `data`'s tensors; `attention` reads and writes them where they are.
  void expect_replay(cuda::CudaPlan& plan, const Batch& batch, OnDevice& device,
                     const conformance::Data& data, const Implementation& attention,
                     const std::string& what) const {
    const Status updated = plan.update(batch, stream);
    ASSERT_TRUE(updated.is_ok()) << updated.message();
    {
      const cuda::Gpu::Scope scope(gpu_);
      ASSERT_EQ(gpu_.driver().launch_graph(replay_, stream), 0);
    }
    ASSERT_TRUE(device.to_host().is_ok());
    const Tensor replayed = data.out.memory.clone();
    const auto fresh = attention.plan(plan.problem(), batch, Device::cuda()).value();
    ASSERT_TRUE(attention.forward(*fresh, data.forward()).is_ok());
    EXPECT_TRUE(std::ranges::equal(replayed.as<bfloat16>(), data.out.memory.as<bfloat16>())) << what;
  }

  cuda::Stream stream = nullptr;

 private:
  void drop_graph() {
    if (graph_ != nullptr) gpu_.driver().destroy_graph(std::exchange(graph_, nullptr));
  }

  const cuda::Gpu& gpu_;
  cuda::Graph graph_ = nullptr;
  cuda::GraphExec replay_ = nullptr;
};

}  // namespace chorale::testing
