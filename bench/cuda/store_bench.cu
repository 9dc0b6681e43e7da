// Checks and times kernels/store.cu and kernels/copy_pages.cu as they are compiled here: bits against the
// CPU's conversions, untouched slots against what they held, and GB/s read and written.
//     nvcc -std=c++20 -O3 -fmad=false -gencode=arch=compute_90a,code=sm_90a -cudart static -Ikernels -Isrc
//     -Iinclude \
//       -DCHORALE_... (as bench/cuda/decode_bench.sh) bench/cuda/store_bench.cu src/base/float.cpp
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "base/float.h"
#include "host.cuh"

#include "copy_pages.cu"
#include "store.cu"

using namespace chorale::kernels;
using namespace chorale::bench;

namespace {

std::vector<unsigned char> to_host(const void* device, std::size_t bytes) {
  std::vector<unsigned char> host(bytes);
  CHECK(cudaMemcpy(host.data(), device, bytes, cudaMemcpyDeviceToHost));
  return host;
}
template <class F>
double microseconds(F launch) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times(15);
  for (float& ms : times) {
    CHECK(cudaEventRecord(start));
    launch();
    CHECK(cudaEventRecord(stop));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventElapsedTime(&ms, start, stop));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3;
}

constexpr int heads = 8, tokens = 4099, pages = 4099 * 2 / Config::page_size + 2;
constexpr int code_bytes = Config::fp8_cache ? 1 : 2;

u16 random_bits(std::mt19937& random,
                bool everything) {  // all values, with NaN and infinities, or usual ones
  if (everything) return static_cast<u16>(random());
  const float x = std::normal_distribution<float>()(random);
  return Config::bfloat16 ? chorale::from_float<chorale::bfloat16>(x).bits
                          : chorale::from_float<chorale::float16>(x).bits;
}
float value_of(u16 bits) {
  return Config::bfloat16 ? chorale::to_float(chorale::bfloat16{bits})
                          : chorale::to_float(chorale::float16{bits});
}

// What the cache holds afterwards.
template <int dim>
std::vector<unsigned char> stored(std::vector<unsigned char> cache, const std::vector<u16>& rows,
                                  const std::vector<long long>& slots, const std::vector<float>& scales) {
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; slots[t] >= 0 && i < heads * dim; ++i) {
      const u16 bits = rows[std::size_t(t) * heads * dim + i];
      const std::size_t at = std::size_t(slots[t]) * heads * dim + i;
      if (Config::fp8_cache)
        cache[at] = chorale::from_float<chorale::float8_e4m3>(value_of(bits) / scales[i / dim]).bits;
      else
        std::memcpy(&cache[at * 2], &bits, 2);
    }
  return cache;
}

int check_store(bool everything) {
  std::mt19937 random(7);
  const std::size_t k_row = heads * Config::head_dim, v_row = heads * Config::value_dim,
                    slots_in_all = std::size_t(pages) * Config::page_size;
  std::vector<u16> k(tokens * k_row), v(tokens * v_row);
  for (u16& x : k) x = random_bits(random, everything);
  for (u16& x : v) x = random_bits(random, everything);
  std::vector<unsigned char> k_cache(slots_in_all * k_row * code_bytes, 0xa5),
      v_cache(slots_in_all * v_row * code_bytes, 0x5a);
  std::vector<long long> slots(slots_in_all);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), random);
  slots.resize(tokens);
  slots[5] = -1;
  std::vector<float> scales(2 * heads);
  for (float& scale : scales) scale = std::uniform_real_distribution<float>(0.001f, 0.02f)(random);

  StoreParams params = {};
  params.k = {to_device(k), (long long)k_row, Config::head_dim};
  params.v = {to_device(v), (long long)v_row, Config::value_dim};
  params.k_cache = {to_device(k_cache), (long long)k_row, Config::head_dim};
  params.v_cache = {to_device(v_cache), (long long)v_row, Config::value_dim};
  params.k_page_stride = Config::page_size * k_row;
  params.v_page_stride = Config::page_size * v_row;
  params.slots = to_device(slots);
  params.k_scale = to_device(scales);
  params.v_scale = params.k_scale + heads;
  params.tokens = tokens;
  params.kv_heads = heads;
  const double us = microseconds([&] {
    chorale_store<<<264, store_threads>>>(params);
    CHECK(cudaGetLastError());
  });
  const std::vector<float> v_scales(scales.begin() + heads, scales.end());
  const bool good =
      to_host(params.k_cache.data, k_cache.size()) == stored<Config::head_dim>(k_cache, k, slots, scales) &&
      to_host(params.v_cache.data, v_cache.size()) == stored<Config::value_dim>(v_cache, v, slots, v_scales);
  std::printf("%s store of %d tokens%s: %.1f us, %.0f GB/s\n", good ? "ok  " : "FAIL", tokens,
              everything ? " of any bits" : "", us, tokens * (k_row + v_row) * (2 + code_bytes) / us * 1e-3);
  return !good;
}

int check_copy() {
  std::mt19937 random(11);
  constexpr int pool_count = 4, page_count = 512, copy_count = 200;
  const long long page_bytes = Config::page_size * heads * Config::head_dim * code_bytes;
  std::vector<int> order(page_count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<PageCopy> copies(copy_count);
  for (int i = 0; i < copy_count; ++i) copies[i] = {order[i], order[copy_count + i]};
  std::vector<std::vector<unsigned char>> memory(pool_count,
                                                 std::vector<unsigned char>(page_count * page_bytes));
  std::vector<PagePool> pools;
  for (auto& bytes : memory) {
    for (unsigned char& x : bytes) x = random();
    unsigned char* device = to_device(bytes);
    pools.push_back({device, device, page_bytes, page_bytes, page_bytes});
  }
  const CopyPagesParams params = {to_device(pools), to_device(copies), pool_count, copy_count};
  const double us = microseconds([&] {
    chorale_copy_pages<<<528, copy_threads>>>(params);
    CHECK(cudaGetLastError());
  });
  bool good = true;
  for (int pool = 0; pool < pool_count; ++pool) {
    auto& want = memory[pool];
    for (const PageCopy& copy : copies)
      std::memcpy(&want[copy.to * page_bytes], &want[copy.from * page_bytes], page_bytes);
    good = good && to_host(pools[pool].to, want.size()) == want;
  }
  std::printf("%s copy of %d pages of %lld bytes in %d pools: %.1f us, %.0f GB/s\n", good ? "ok  " : "FAIL",
              copy_count, page_bytes, pool_count, us, 2.0 * copy_count * pool_count * page_bytes / us * 1e-3);
  return !good;
}

}  // namespace

int main() { return check_store(false) + check_store(true) + check_copy() != 0; }
