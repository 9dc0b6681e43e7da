#include "implementations/cuda/page_table.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace chorale::cuda {
namespace {

// Copies pages and gives the largest. Most of a plan's time where pages are small, so that it is one pass.
std::uint32_t copy_plainly(const std::int32_t* from, std::int64_t count, std::int32_t* to,
                           std::uint32_t largest) {
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = from[i];
    largest = std::max(largest, static_cast<std::uint32_t>(from[i]));
  }
  return largest;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) std::uint32_t copy_by_eights(const std::int32_t* from, std::int64_t count,
                                                             std::int32_t* to) {
  __m256i most = _mm256_setzero_si256();
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i pages = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), pages);
    most = _mm256_max_epu32(most, pages);
  }
  alignas(32) std::uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  return copy_plainly(from + i, count - i, to + i, *std::max_element(lanes, lanes + 8));
}
#endif

std::uint32_t copy(const std::int32_t* from, std::int64_t count, std::int32_t* to) {
#if defined(__x86_64__)
  static const bool by_eights = __builtin_cpu_supports("avx2");
  if (by_eights) return copy_by_eights(from, count, to);
#endif
  return copy_plainly(from, count, to, 0);
}

std::int64_t pages_of(const Batch& batch, int sequence) {
  return (std::int64_t{batch.kv_len(sequence)} + batch.page_size - 1) / batch.page_size;
}

}  // namespace

std::int64_t copy_pages(const Batch& batch, std::int32_t* to) {
  std::int64_t largest = -1;
  for (int s = 0; batch.is_paged() && s < batch.sequences(); ++s)
    if (const std::int64_t used = pages_of(batch, s); used > 0) {
      const std::int64_t row = s * batch.block_table_stride;
      largest = std::max<std::int64_t>(largest, copy(batch.block_table.data() + row, used, to + row));
    }
  return largest;
}

}  // namespace chorale::cuda
