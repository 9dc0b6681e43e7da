#include "bench/peaks.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own header

namespace chorale::bench {
namespace {

// Each loop runs `steps` steps and returns the operations done. Chains are many enough to hide the latency.
// The sum goes to a volatile, so that nothing is left out; each thread has its own.
thread_local volatile float sink;

__attribute__((target("avx512f,avx512bf16"))) double avx512_bf16_loop(std::int64_t steps) {
  __m512 sums[16];
  for (auto& s : sums) s = _mm512_setzero_ps();
  const auto x = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (std::int64_t i = 0; i < steps; ++i)
    for (auto& s : sums) s = _mm512_dpbf16_ps(s, x, x);
  for (const auto& s : sums) sink = _mm512_cvtss_f32(s);
  return static_cast<double>(steps) * 16 * 2 * 32;
}

__attribute__((target("avx512f"))) double avx512_loop(std::int64_t steps) {
  __m512 sums[16];
  for (auto& s : sums) s = _mm512_setzero_ps();
  const __m512 x = _mm512_set1_ps(0.5f);
  for (std::int64_t i = 0; i < steps; ++i)
    for (auto& s : sums) s = _mm512_fmadd_ps(s, x, x);
  for (const auto& s : sums) sink = _mm512_cvtss_f32(s);
  return static_cast<double>(steps) * 16 * 2 * 16;
}

__attribute__((target("avx2,fma"))) double avx2_loop(std::int64_t steps) {
  __m256 sums[12];
  for (auto& s : sums) s = _mm256_setzero_ps();
  const __m256 x = _mm256_set1_ps(0.5f);
  for (std::int64_t i = 0; i < steps; ++i)
    for (auto& s : sums) s = _mm256_fmadd_ps(s, x, x);
  for (const auto& s : sums) sink = _mm256_cvtss_f32(s);
  return static_cast<double>(steps) * 12 * 2 * 8;
}

// `steps` steps of the loop of that dtype on this thread; returns the operations.
double multiply_alone(bool bfloat16, std::int64_t steps) {
  const simd::DotLevel level = bfloat16 ? simd::dot_level() : simd::DotLevel::none;
  const simd::DotScope scope(level);
  if (level == simd::DotLevel::amx) return amx_products(steps);
  if (level == simd::DotLevel::avx512_bf16) return avx512_bf16_loop(steps);
  return simd::level() == "avx512" ? avx512_loop(steps) : avx2_loop(steps);
}

// What run() does in a second, the best of five.
template <class Run>
double best_rate(double amount, Run run) {
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, amount / time.count());
  }
  return best;
}

}  // namespace

__attribute__((target("amx-tile,amx-bf16"))) double amx_products(std::int64_t steps) {
  // Ordinary numbers, 1 to 2 of both signs: of zeros a processor multiplies more in a second, since it draws
  // less power (measured: a tenth).
  alignas(64) static const std::array<std::uint16_t, 4 * 512> tiles = [] {
    std::array<std::uint16_t, 4 * 512> bits;
    std::uint32_t random = 1;
    for (std::uint16_t& x : bits) {
      random = random * 1664525 + 1013904223;
      x = static_cast<std::uint16_t>(0x3f80 | (random >> 16 & 0x807f));
    }
    return bits;
  }();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, tiles.data(), 64);
  _tile_loadd(5, tiles.data() + 512, 64);
  _tile_loadd(6, tiles.data() + 1024, 64);
  _tile_loadd(7, tiles.data() + 1536, 64);
  for (std::int64_t i = 0; i < steps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return static_cast<double>(steps) * 4 * 2 * 16 * 16 * 32;
}

void multiply(bool bfloat16, double operations, int threads) {
  const double step = multiply_alone(bfloat16, 1);
  parallel_for(threads, threads, [&](std::int64_t, int) {
    multiply_alone(bfloat16, static_cast<std::int64_t>(std::ceil(operations / threads / step)));
  });
}

double peak_flops(bool bfloat16, int threads) {
  const double operations = threads * multiply_alone(bfloat16, 1) * (1 << 20);
  return best_rate(operations, [&] { multiply(bfloat16, operations, threads); });
}

void read_memory(std::int64_t bytes, int threads) {
  // More than any last-level cache here.
  static const std::vector<float> memory(std::size_t{1} << 27, 1.0f);
  static std::int64_t at = 0;
  constexpr std::int64_t stretch = 1 << 18;  // floats that one thread reads at a time
  const std::int64_t stretches = std::ssize(memory) / stretch,
                     count = (bytes / std::int64_t{sizeof(float)} + stretch - 1) / stretch;
  parallel_for(count, threads, [&](std::int64_t i, int) {
    sink = simd::sum(memory.data() + (at + i) % stretches * stretch, stretch);
  });
  at += count;
}

double peak_bandwidth(int threads) {
  constexpr std::int64_t bytes = std::int64_t{1} << 29;
  read_memory(bytes, threads);
  return best_rate(bytes, [&] { read_memory(bytes, threads); });
}

void read_pages(const float* keys, const float* values, std::int64_t page_floats,
                const std::int32_t* block_table, std::int64_t pages, int threads) {
  constexpr std::int64_t stretch = 16;  // pages of one task
  parallel_for((pages + stretch - 1) / stretch, threads, [&](std::int64_t task, int) {
    float sum = 0;
    for (std::int64_t i = task * stretch; i < std::min(pages, (task + 1) * stretch); ++i)
      for (const float* of : {keys, values}) sum += simd::sum(of + block_table[i] * page_floats, page_floats);
    sink = sum;
  });
}

}  // namespace chorale::bench
