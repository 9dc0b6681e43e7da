#include "implementations/cuda/on_gpu.h"

#include "implementations/cuda/order.h"

namespace chorale::testing {

Result<std::shared_ptr<const Plan>> OnGpu::plan(const Problem& problem, const Batch& batch,
                                                const Device&) const {
  if (chunk_ == 0 && cluster_ == 0) {
    CHORALE_ASSIGN_OR_RETURN(std::shared_ptr<const Plan> plan, inner_.plan(problem, batch, Device::cuda()));
    if (on_plan != nullptr) on_plan(plan->problem());
    return plan;
  }
  cuda::Order order = cuda::order_of(problem.head_dim, problem.value_dim());
  if (chunk_ != 0) order.chunk = chunk_;
  CHORALE_ASSIGN_OR_RETURN(std::shared_ptr<cuda::CudaPlan> made,
                           cuda::CudaPlan::create(name(), gpu_, problem, batch, order, cluster_));
  if (on_plan != nullptr) on_plan(made->problem());
  return std::shared_ptr<const Plan>(std::move(made));
}

}  // namespace chorale::testing
