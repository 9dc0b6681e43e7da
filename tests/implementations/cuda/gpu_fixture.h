// What tests that need a GPU, or the fake one, begin with.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "implementations/conformance/case.h"
#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/on_gpu.h"
#include "implementations/cuda/order.h"
#ifdef CHORALE_FAKE_GPU
#include "implementations/cuda/fake_gpu.h"
#endif

namespace chorale::testing {

// Has the first GPU, or is skipped and says why.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const Problem plain{.query_heads = 1, .kv_heads = 1, .head_dim = 64};
    if (const Status can = cuda_attention().supports(plain, Device::cuda(), Phase::forward); !can.is_ok())
      GTEST_SKIP() << can.message();
    gpu_ = cuda::Gpu::get(0).value();
  }
  cuda::Gpu* gpu_ = nullptr;
};

// A plan of the GPU's own order, of which the fake GPU is told.
inline std::shared_ptr<cuda::CudaPlan> plan_of(cuda::Gpu& gpu, const conformance::Case& test,
                                               const Batch& batch) {
  const cuda::Order order = cuda::order_of(test.problem.head_dim, test.problem.value_dim());
  auto plan = cuda::CudaPlan::create(cuda_attention().name(), gpu, test.problem, batch, order).value();
  if (on_plan != nullptr) on_plan(plan->problem());
  return plan;
}

}  // namespace chorale::testing
