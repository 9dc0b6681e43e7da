#include "implementations/cuda/page_table.h"

#include <algorithm>
#include <bit>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace chorale::cuda {
namespace {

// That a sequence uses. Page sizes are powers of two.
std::int64_t pages_of(const Batch& batch, int sequence) {
  const auto size = static_cast<unsigned>(batch.page_size);
  return (std::int64_t{batch.kv_len(sequence)} + size - 1) >> std::countr_zero(size);
}

// What is there already is not written again: from step to step little changes, and a line that the GPU has
// copied from is slow to write.
//
// Copying and looking for the largest are one pass: most of a plan's time where pages are small.
std::uint32_t copy_row_plainly(const std::int32_t* from, std::int64_t count, std::int32_t* to) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = from[i];
    largest = std::max(largest, static_cast<std::uint32_t>(from[i]));
  }
  return largest;
}

std::uint32_t copy_plainly(const Batch& batch, std::int32_t* to) {
  std::uint32_t largest = 0;
  const std::int32_t* from = batch.block_table.data();
  for (int s = 0; s < batch.sequences();
       ++s, from += batch.block_table_stride, to += batch.block_table_stride)
    largest = std::max(largest, copy_row_plainly(from, pages_of(batch, s), to));
  return largest;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline __m256i copy_eight(const std::int32_t* from, std::int32_t* to,
                                                          __m256i most) {
  const __m256i pages = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i there = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(to));
  const __m256i differs = _mm256_xor_si256(pages, there);
  if (!_mm256_testz_si256(differs, differs)) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pages);
  return _mm256_max_epu32(most, pages);
}

// A row's last eight may overlap those before.
__attribute__((target("avx2"))) std::uint32_t copy_by_eights(const Batch& batch, std::int32_t* to) {
  __m256i most = _mm256_setzero_si256();
  std::uint32_t largest = 0;
  const std::int32_t* from = batch.block_table.data();
  for (int s = 0; s < batch.sequences();
       ++s, from += batch.block_table_stride, to += batch.block_table_stride) {
    const std::int64_t count = pages_of(batch, s);
    if (count < 8) {
      largest = std::max(largest, copy_row_plainly(from, count, to));
      continue;
    }
    for (std::int64_t i = 0; i < count - 8; i += 8) most = copy_eight(from + i, to + i, most);
    most = copy_eight(from + count - 8, to + count - 8, most);
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
