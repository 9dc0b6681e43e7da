// The C functions of bench/capi.cpp that only bench/attention_gpu.py needs.
#include <fmt/format.h>

#include <chrono>
#include <string>

#include "capi.h"
#include "implementations/cuda/compiler.h"
#include "implementations/cuda/cuda_plan.h"
#include "implementations/cuda/nvrtc.h"

namespace chorale::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

cuda::Order order_of(const Problem& problem, int chunk) {
  cuda::Order order = cuda::order_of(problem.head_dim, problem.value_dim());
  if (chunk != 0) order.chunk = chunk;
  return order;
}

// What the compiler took; kernels of the cache take nothing.
Result<double> compile(const CaseRequest& request) {
  CHORALE_ASSIGN_OR_RETURN(const Problem problem, make_problem(request));
  const Batch batch = make_batch(request);
  const cuda::Order order = order_of(problem, request.chunk);
  const cuda::WorkSizes work = cuda::measure_work(problem, batch, order, cuda::hopper_multiprocessors);
  const cuda::KernelCache cache(cuda::KernelCache::default_folder());
  double seconds = 0;
  for (const cuda::KernelKey& key : cuda::kernel_keys(work, problem, order, batch.page_size)) {
    CHORALE_ASSIGN_OR_RETURN(const cuda::CompiledKernel kernel,
                             cuda::compile_kernel(key, cuda::hopper, cache));
    if (!kernel.from_cache) seconds += kernel.seconds;
  }
  return seconds;
}

struct HostSeconds {  // one for each run
  double *plan, *changed_plan, *first_forward, *later_forward;
};

// The same lengths in other pages.
Batch in_other_pages(Batch batch, int pages, int by) {
  for (std::int32_t& page : batch.block_table) page = (page + by) % pages;
  return batch;
}

Status time_plan(const CaseRequest& request, const ForwardTensors& tensors, int runs,
                 const HostSeconds& seconds) {
  CHORALE_ASSIGN_OR_RETURN(const Problem problem, make_problem(request));
  CHORALE_ASSIGN_OR_RETURN(const Device device, Device::parse(request.device));
  CHORALE_ASSIGN_OR_RETURN(const Attention attention,
                           Attention::create(problem, request.implementation, device));
  CHORALE_ASSIGN_OR_RETURN(cuda::Gpu * gpu, cuda::Gpu::get(device.ordinal));
  // Three, since plans take turns at two places in pinned memory.
  const Batch batch = make_batch(request);
  const Batch batches[] = {batch, in_other_pages(batch, request.pages, 1),
                           in_other_pages(batch, request.pages, 2)};
  CHORALE_ASSIGN_OR_RETURN(std::shared_ptr<const Plan> plan, attention.plan(batch));  // finds the kernels
  for (int run = 0; run < 2 * runs; ++run) {
    const bool changes = run >= runs;
    auto start = Clock::now();
    CHORALE_ASSIGN_OR_RETURN(std::shared_ptr<const Plan> next,
                             attention.plan(batches[changes ? run % 3 : 0]));
    (changes ? seconds.changed_plan : seconds.plan)[run % runs] = seconds_since(start);
    plan = std::move(next);  // a step's plan lives until the next one's is there
    for (double* taken : {seconds.first_forward, seconds.later_forward}) {
      start = Clock::now();
      CHORALE_RETURN_IF_ERROR(attention.forward(*plan, tensors));
      taken[run % runs] = seconds_since(start);
    }
    const cuda::Gpu::Scope scope(*gpu);
    CHORALE_RETURN_IF_ERROR(gpu->driver().check(
        gpu->driver().synchronize_stream(static_cast<cuda::Stream>(tensors.stream)), "running a step"));
  }
  return Status::ok();
}

}  // namespace

Result<std::shared_ptr<const Plan>> plan_with_chunk(const Problem& problem, const Batch& batch,
                                                    const Device& device, int chunk) {
  if (device.kind != Device::Kind::cuda)
    return Status::unsupported(fmt::format("chunk {}: on a GPU only", chunk));
  CHORALE_ASSIGN_OR_RETURN(cuda::Gpu * gpu, cuda::Gpu::get(device.ordinal));
  CHORALE_ASSIGN_OR_RETURN(
      std::shared_ptr<cuda::CudaPlan> plan,
      cuda::CudaPlan::create("flash_attention_3", *gpu, problem, batch, order_of(problem, chunk)));
  return std::shared_ptr<const Plan>(std::move(plan));
}

}  // namespace chorale::bench

extern "C" {

using namespace chorale;

// "cuda:0 (NVIDIA H200, ...)" and "13.0 (/usr/.../libnvrtc.so.13)".
const char* chorale_device(const char* name) {
  thread_local std::string text;
  const auto device = Device::parse(name);
  if (bench::failed(device.status())) return nullptr;
  return (text = device->describe()).c_str();
}
const char* chorale_nvrtc() {
  thread_local std::string text;
  const auto nvrtc = cuda::Nvrtc::get();
  if (bench::failed(nvrtc.status())) return nullptr;
  return (text = fmt::format("{} ({})", (*nvrtc)->version(), (*nvrtc)->path())).c_str();
}

// Compiles the kernels of a case into the cache, without a GPU too.
int chorale_compile(const CaseRequest* request, double* seconds) {
  const auto taken = bench::compile(*request);
  if (bench::failed(taken.status())) return 0;
  *seconds = *taken;
  return 1;
}

// Host time of `runs` steps: making a plan whose pages are those of the step before, one of which every page
// is another, the latter's first forward (which copies the plan to the GPU) and one more. Tensors as for
// chorale_forward, keys in pages.
int chorale_plan_seconds(const CaseRequest* request, const void* q, const void* k, const void* v, void* out,
                         void* stream, int runs, double* plan, double* changed_plan, double* first_forward,
                         double* later_forward) {
  const auto problem = bench::make_problem(*request);
  if (bench::failed(problem.status())) return 0;
  const std::int64_t rows = bench::make_batch(*request).total_q();
  const auto queries = [&](const void* data) {
    return TensorView::contiguous(data, problem->dtype, {rows, problem->query_heads, problem->head_dim});
  };
  const auto keys = [&](const void* data) {
    return TensorView::contiguous(data, problem->dtype,
                                  {request->pages, request->page_size, problem->kv_heads, problem->head_dim});
  };
  const ForwardTensors tensors{
      .q = queries(q), .k = keys(k), .v = keys(v), .out = queries(out), .stream = stream};
  const bench::HostSeconds seconds{plan, changed_plan, first_forward, later_forward};
  return bench::failed(bench::time_plan(*request, tensors, runs, seconds)) ? 0 : 1;
}

}  // extern "C"
