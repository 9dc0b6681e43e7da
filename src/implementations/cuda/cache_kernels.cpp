#include "implementations/cuda/cache_kernels.h"

#include <fmt/format.h>

#include <bit>

#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/tensor_maps.h"
#include "implementations/views.h"
#include "kernels/cache_params.h"

namespace chorale::cuda {
namespace {

Status check_tensors(const Problem& problem, const StoreTensors& t) {
  const std::int64_t tokens = t.k.shape[0], pages = t.k_cache.shape[0], size = t.k_cache.shape[1];
  const DType cached = problem.kv_dtype_or_default();
  const int heads = problem.kv_heads, dim = problem.head_dim, value_dim = problem.value_dim();
  const NamedView views[] = {
      {"k", &t.k, Access::read, problem.dtype, {any_extent, heads, dim}},
      {"v", &t.v, Access::read, problem.dtype, {tokens, heads, value_dim}},
      {"k_cache", &t.k_cache, Access::write, cached, {any_extent, any_extent, heads, dim}},
      {"v_cache", &t.v_cache, Access::write, cached, {pages, size, heads, value_dim}}};
  for (const NamedView& view : views) {
    CHORALE_RETURN_IF_ERROR(check_view(view));
    CHORALE_RETURN_IF_ERROR(check_alignment(view.name, *view.view));
  }
  if (size < 1 || size > 256 || !std::has_single_bit(static_cast<std::uint64_t>(size)))
    return Status::unsupported(
        fmt::format("k_cache: pages of {} tokens: must be a power of two from 1 to 256", size));
  if (t.slots == nullptr && tokens > 0) return Status::invalid_argument("slots: must be given");
  for (const auto& [name, view] : {std::pair("k_scale", &t.k_scale), {"v_scale", &t.v_scale}}) {
    if (view->empty() == problem.has_kv_scales())
      return Status::invalid_argument(
          fmt::format("{}: must be given exactly where the cache holds float8", name));
    if (!view->empty() && !view->is_contiguous())
      return Status::unsupported(fmt::format("{}: must be contiguous on a GPU", name));
  }
  return check_disjoint(views);
}

}  // namespace

Status store(Gpu& gpu, const Problem& problem, const StoreTensors& tensors) {
  CHORALE_RETURN_IF_ERROR(supports_problem(problem));
  CHORALE_RETURN_IF_ERROR(check_tensors(problem, tensors));
  if (tensors.k.shape[0] == 0) return Status::ok();
  const auto page_size = static_cast<int>(tensors.k_cache.shape[1]);
  CHORALE_ASSIGN_OR_RETURN(const Kernel* kernel,
                           gpu.kernel(kernel_key(KernelKind::store, problem, page_size)));
  static_assert(sizeof(long long) == sizeof(std::int64_t));
  kernels::StoreParams params{};
  params.k = rows_of(tensors.k);
  params.v = rows_of(tensors.v);
  params.k_cache = rows_of(tensors.k_cache);
  params.v_cache = rows_of(tensors.v_cache);
  params.k_page_stride = tensors.k_cache.stride[0];
  params.v_page_stride = tensors.v_cache.stride[0];
  params.slots = reinterpret_cast<const long long*>(tensors.slots);
  params.k_scale = static_cast<const float*>(tensors.k_scale.data);
  params.v_scale = static_cast<const float*>(tensors.v_scale.data);
  params.tokens = static_cast<int>(tensors.k.shape[0]);
  params.kv_heads = problem.kv_heads;
  const Gpu::Scope scope(gpu);
  return gpu.launch(*kernel, gpu.multiprocessors(), &params, static_cast<Stream>(tensors.stream));
}

Status copy_pages(Gpu& gpu, const Problem& problem, int page_size, const PageCopies& copies) {
  if (copies.pool_count == 0 || copies.copy_count == 0) return Status::ok();
  CHORALE_ASSIGN_OR_RETURN(const Kernel* kernel,
                           gpu.kernel(kernel_key(KernelKind::copy_pages, problem, page_size)));
  const kernels::CopyPagesParams params{static_cast<const kernels::PagePool*>(copies.pools),
                                        static_cast<const kernels::PageCopy*>(copies.copies),
                                        copies.pool_count, copies.copy_count};
  const Gpu::Scope scope(gpu);
  return gpu.launch(*kernel, gpu.multiprocessors(), &params, static_cast<Stream>(copies.stream));
}

}  // namespace chorale::cuda
