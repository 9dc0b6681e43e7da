// What the host hands to the kernels that write a KV cache: plain data, read by both compilers.
#pragma once

#include "params.h"

namespace chorale::kernels {

// New keys and values of one layer, to their slots. Elements of the new rows are 16 bits wide; the cache has
// the same type, or 8-bit codes. All rows begin at multiples of 16 bytes.
struct StoreParams {
  Rows k, v;                               // [tokens, KV heads, dim]
  Rows k_cache, v_cache;                   // of one page: token_stride lies between its slots
  long long k_page_stride, v_page_stride;  // elements
  const long long* slots;                  // [tokens]: page * page_size + offset; negative: not stored
  const float* k_scale;                    // [KV heads], 8-bit caches only
  const float* v_scale;
  int tokens, kv_heads;
};

// Whole pages from one pool to another, or within one. No page that is written may be read or written again
// in the same launch.
struct PagePool {
  const void* from;
  void* to;
  long long from_stride, to_stride;  // bytes from page to page, multiples of 16
  long long page_bytes;              // to copy, a multiple of 16
};
struct PageCopy {
  int from, to;
};
struct CopyPagesParams {
  const PagePool* pools;   // of all layers, keys and values: device memory
  const PageCopy* copies;  // device memory
  int pool_count, copy_count;
};

}  // namespace chorale::kernels
