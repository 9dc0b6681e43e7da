// What writes a KV cache that lies on a GPU: new keys and values to their slots, and copies of whole pages.
#pragma once

#include <span>

#include "chorale/problem.h"
#include "implementations/cuda/gpu.h"

namespace chorale::cuda {

// All of it device memory, as KvCache::store has it in host memory.
struct StoreTensors {
  TensorView k, v;  // [tokens, kv_heads, head_dim], [tokens, kv_heads, value_dim], of the problem's dtype
  TensorView k_cache, v_cache;  // [pages, page_size, kv_heads, ...], of its kv_dtype
  const std::int64_t* slots =
      nullptr;  // [tokens]: page * page_size + offset, inside the pool; negative: not stored
  TensorView k_scale{}, v_scale{};  // [kv_heads] float32; given exactly if Problem::has_kv_scales()
  void* stream = nullptr;
};
Status store(Gpu& gpu, const Problem& problem, const StoreTensors& tensors);

// Every page `from` of `pools` to page `to` of the same pool: a fork that parts from its siblings, in every
// layer. No page is written that another copy reads or writes. `pools` and `copies` lie in device memory and
// are as kernels/cache_params.h describes them.
struct PageCopies {
  const void* pools = nullptr;   // kernels::PagePool[pool_count]
  const void* copies = nullptr;  // kernels::PageCopy[copy_count]
  int pool_count = 0, copy_count = 0;
  void* stream = nullptr;
};
Status copy_pages(Gpu& gpu, const Problem& problem, int page_size, const PageCopies& copies);

}  // namespace chorale::cuda
