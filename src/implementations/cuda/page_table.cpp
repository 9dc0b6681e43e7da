#include "implementations/cuda/page_table.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace chorale::cuda {
namespace {

std::int64_t pages_of(const Batch& batch, int sequence) {
  return (std::int64_t{batch.kv_len(sequence)} + batch.page_size - 1) / batch.page_size;
}

// Most of a plan's time where pages are small, so that copying and looking are one pass.
std::uint32_t copy_plainly(const Batch& batch, std::int32_t* to) {
  std::uint32_t largest = 0;
  for (int s = 0; s < batch.sequences(); ++s, to += batch.block_table_stride) {
    const std::int32_t* from = batch.block_table.data() + s * batch.block_table_stride;
    for (std::int64_t i = 0, used = pages_of(batch, s); i < used; ++i) {
      to[i] = from[i];
      largest = std::max(largest, static_cast<std::uint32_t>(from[i]));
    }
  }
  return largest;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) std::uint32_t copy_by_eights(const Batch& batch, std::int32_t* to) {
  __m256i most = _mm256_setzero_si256();
  std::uint32_t largest = 0;
  for (int s = 0; s < batch.sequences(); ++s, to += batch.block_table_stride) {
    const std::int32_t* from = batch.block_table.data() + s * batch.block_table_stride;
    std::int64_t i = 0;
    const std::int64_t used = pages_of(batch, s);
    for (; i + 8 <= used; i += 8) {
      const __m256i pages = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), pages);
      most = _mm256_max_epu32(most, pages);
    }
    for (; i < used; ++i) {
      to[i] = from[i];
      largest = std::max(largest, static_cast<std::uint32_t>(from[i]));
    }
  }
  alignas(32) std::uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  return std::max(largest, *std::max_element(lanes, lanes + 8));
}
#endif

std::uint32_t copy(const Batch& batch, std::int32_t* to) {
#if defined(__x86_64__)
  static const bool by_eights = __builtin_cpu_supports("avx2");
  if (by_eights) return copy_by_eights(batch, to);
#endif
  return copy_plainly(batch, to);
}

}  // namespace

std::int64_t copy_pages(const Batch& batch, std::int32_t* to) {
  const bool uses_some = batch.is_paged() && std::ranges::any_of(batch.kv_lens, [](int n) { return n > 0; });
  return uses_some ? std::int64_t{copy(batch, to)} : -1;
}

}  // namespace chorale::cuda
