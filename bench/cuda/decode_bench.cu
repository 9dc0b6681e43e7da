// Checks and times kernels/decode.cu as it is compiled here, with a host of its own: no runtime compilation,
// plans made in place. bench/cuda/decode_bench.sh builds one program for each configuration.
//     decode_bench check           against float64, and bits against bits; prints a hash to compare programs
//     decode_bench touch           a short run, for compute-sanitizer
//     decode_bench time BxK ...    microseconds and GB/s of keys and values
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "decode.cu"
#include "host.cuh"
#include "implementations/cuda/split.h"

using namespace chorale::kernels;
using namespace chorale::bench;

namespace {

constexpr int kv_heads = 8, query_heads = kv_heads * Config::group;
constexpr int element_size = Config::fp8_cache ? 1 : 2;
constexpr float key_scale = 0.013f, value_scale = 0.0071f;

// --- inputs: a function of what they are, not of where they lie ----------------------------------------

// Seeds from here on: keys grow along each chunk, so that references rise in its midst.
constexpr int steep_seed = 16;
__device__ inline float input(int seed, int tensor, int sequence, int position, int head, int column) {
  const std::uint64_t key = ((std::uint64_t(seed) * 3 + tensor) << 56) ^ (std::uint64_t(sequence) << 40) ^
                            (std::uint64_t(position) << 16) ^ (std::uint64_t(head) << 9) ^ column;
  const float x = bell(key);
  if (tensor == 1 && seed >= steep_seed) return x * float(8 * (position % Config::chunk) / Config::chunk + 1);
  return tensor == 0 ? 2.f * x : x;  // queries are larger, so that scores spread
}
__device__ inline u16 stored(float x) { return static_cast<u16>(pack(x, 0.f)); }
__device__ inline u16 cached_bits(float x, int tensor) {  // codes where the cache has codes
  return Config::fp8_cache ? pack_e4m3(x / (tensor == 1 ? key_scale : value_scale), 0.f) & 0xff : stored(x);
}
__device__ inline double cached_value(float x, int tensor) {
  const u16 bits = cached_bits(x, tensor);
  if constexpr (Config::fp8_cache)
    return unpack<Config::bfloat16>(
        static_cast<u16>(decode_pair(bits, tensor == 1 ? key_scale : value_scale)));
  return unpack<Config::bfloat16>(bits);
}

struct Place {            // of keys: a pool of pages, or one page of all tokens
  int page_size, stride;  // entries of a row of the block table
};

__global__ void fill_queries(u16* q, const Sequence* sequences, int seed) {
  const Sequence s = sequences[blockIdx.y];
  const int row = blockIdx.x;
  if (row >= s.q_len) return;
  for (int i = threadIdx.x; i < query_heads * Config::head_dim; i += blockDim.x)
    q[(long long)(s.q_first + row) * query_heads * Config::head_dim + i] = stored(
        input(seed, 0, blockIdx.y, s.kv_len - s.q_len + row, i / Config::head_dim, i % Config::head_dim));
}
constexpr int poisoned_column = 13;  // of the last key's values, in a poisoned problem: NaN
template <int dim>
__global__ void fill_cache(unsigned char* pool, int tensor, const Sequence* sequences, const int* table,
                           int stride, int seed, bool poisoned) {
  const Sequence s = sequences[blockIdx.y];
  for (int k = blockIdx.x; k < s.kv_len; k += gridDim.x) {
    const long long slot =
        Config::paged ? (long long)table[blockIdx.y * stride + k / Config::page_size] * Config::page_size +
                            k % Config::page_size
                      : s.kv_first + k;
    for (int i = threadIdx.x; i < kv_heads * dim; i += blockDim.x) {
      u16 bits = cached_bits(input(seed, tensor, blockIdx.y, k, i / dim, i % dim), tensor);
      if (poisoned && k == s.kv_len - 1 && i % dim == poisoned_column) bits = 0xffff;
      if (element_size == 1)
        pool[slot * kv_heads * dim + i] = bits;
      else
        reinterpret_cast<u16*>(pool)[slot * kv_heads * dim + i] = bits;
    }
  }
}
__global__ void fill_noise(uint4* words, long long count, unsigned seed) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    uint4 w;
    u32* part = &w.x;
    for (int j = 0; j < 4; ++j) {
      const float a = uniform_at(i * 8 + 2 * j + (std::uint64_t(seed) << 40)),
                  b = uniform_at(i * 8 + 2 * j + 1 + (std::uint64_t(seed) << 40));
      part[j] = element_size == 2 ? pack(a, b)
                                  : u32(pack_e4m3(a * 100, b * 100)) | u32(pack_e4m3(b * 90, a * 90)) << 16;
    }
    words[i] = w;
  }
}

// --- the reference: float64, from the inputs themselves -------------------------------------------------

__global__ void reference(double* out, double* lse, const Sequence* sequences, const float* sinks,
                          float scale, int seed) {
  constexpr int dim = Config::head_dim, value_dim = Config::value_dim;
  const Sequence s = sequences[blockIdx.y];
  const int row = blockIdx.x / query_heads, head = blockIdx.x % query_heads;
  if (row >= s.q_len) return;
  const int q = s.kv_len - s.q_len + row;
  __shared__ double query[dim], total[256], weight[128];
  for (int i = threadIdx.x; i < dim; i += 256)
    query[i] = unpack<Config::bfloat16>(stored(input(seed, 0, blockIdx.y, q, head, i)));
  __syncthreads();
  const auto score = [&](int k) {
    if (Config::masked && !program_visible(nullptr, blockIdx.y, head, q, k, {}, {})) return -HUGE_VAL;
    double x = 0;
    for (int i = 0; i < dim; ++i)
      x += query[i] * cached_value(input(seed, 1, blockIdx.y, k, head / Config::group, i), 1);
    x *= scale;
    if (Config::scored) x += -0.001 * (head + 1) * (q - k);
    return x;
  };
  const auto reduce = [&](double x, bool largest) {
    __syncthreads();
    total[threadIdx.x] = x;
    __syncthreads();
    for (int i = 128; i > 0; i /= 2) {
      if (int(threadIdx.x) < i)
        total[threadIdx.x] = largest ? fmax(total[threadIdx.x], total[threadIdx.x + i])
                                     : total[threadIdx.x] + total[threadIdx.x + i];
      __syncthreads();
    }
    return total[0];
  };
  double maximum = -HUGE_VAL, sum = 0;
  for (int k = threadIdx.x; k < s.kv_len; k += 256) maximum = fmax(maximum, score(k));
  maximum = reduce(maximum, true);
  if (Config::sinks) maximum = fmax(maximum, double(sinks[head]));
  double o[2] = {0, 0};  // columns threadIdx.x % 128 and + 128, keys of one half
  for (int first = 0; first < s.kv_len; first += 128) {
    __syncthreads();
    if (threadIdx.x < 128) {
      const int k = first + threadIdx.x;
      weight[threadIdx.x] = k < s.kv_len && maximum != -HUGE_VAL ? exp(score(k) - maximum) : 0;
      sum += weight[threadIdx.x];
    }
    __syncthreads();
    for (int k = threadIdx.x / 128; k < 128 && first + k < s.kv_len; k += 2)
      if (weight[k] != 0)
        for (int c = 0; c < 2; ++c)
          if (const int column = threadIdx.x % 128 + 128 * c; column < value_dim)
            o[c] += weight[k] *
                    cached_value(input(seed, 2, blockIdx.y, first + k, head / Config::group, column), 2);
  }
  sum = reduce(sum, false);
  if (Config::sinks) sum += exp(double(sinks[head]) - maximum);
  __shared__ double half[2][128];
  __syncthreads();
  if (threadIdx.x >= 128)
    for (int c = 0; c < 2; ++c) half[c][threadIdx.x - 128] = o[c];
  __syncthreads();
  const long long at = (long long)(s.q_first + row) * query_heads + head;
  if (threadIdx.x < 128)
    for (int c = 0; c < 2; ++c)
      if (const int column = threadIdx.x + 128 * c; column < value_dim)
        out[at * value_dim + column] = sum > 0 ? (o[c] + half[c][threadIdx.x]) / sum : 0;
  if (threadIdx.x == 0) lse[at] = sum > 0 ? maximum + log(sum) : -HUGE_VAL;
}

// --- plans ---------------------------------------------------------------------------------------------

struct Plan {
  std::vector<Sequence> sequences;
  std::vector<int> table;
  std::vector<RowBlock> blocks;
  int stride = 1, items = 0, slots = 0, arrival_counters = 0, tokens = 0, keys = 0;
  PlanView view;
};

// What make_plan() cuts row blocks into items for. Changes no bit.
int split_for() {
  const char* wanted = std::getenv("SPLIT_FOR");
  return (wanted == nullptr ? multiprocessors() : std::atoi(wanted)) / cluster;
}

std::vector<SplitItem> split(Plan& plan, int multiprocessors) {
  chorale::cuda::SplitSizes sizes;
  for (const RowBlock& block : plan.blocks)
    sizes.add(chorale::cuda::chunks_of(plan.sequences[block.sequence].kv_len, Config::chunk));
  const auto set_whole = [&](SplitItem& item, int i) {
    const RowBlock& block = plan.blocks[i];
    chorale::cuda::set_whole_item(item, plan.sequences[block.sequence], block.sequence, block.first,
                                  Config::positions, Config::chunk);
  };
  std::vector<SplitItem> items(sizes.chunks);
  items.resize(chorale::cuda::split(sizes, kv_heads, multiprocessors, set_whole, items.data()));
  plan.slots = sizes.most_slots;
  plan.arrival_counters = sizes.blocks + plan.slots / merge_step;
  return items;
}

// Takes pages from the end of `free_pages`.
Plan make_plan(const std::vector<std::pair<int, int>>& lengths, std::vector<int>& free_pages,
               int multiprocessors) {
  Plan plan;
  const int size = Config::paged ? Config::page_size : 1;
  for (auto [q_len, kv_len] : lengths) plan.stride = std::max(plan.stride, (kv_len + size - 1) / size);
  plan.table.assign(plan.stride * lengths.size(), -1);
  for (auto [q_len, kv_len] : lengths) {
    const int s = plan.sequences.size();
    plan.sequences.push_back({plan.tokens, q_len, Config::paged ? 0 : plan.keys, kv_len});
    plan.tokens += q_len;
    plan.keys += kv_len;
    if (Config::paged)
      for (int page = 0; page * size < kv_len; ++page) {
        plan.table[s * plan.stride + page] = free_pages.back();
        free_pages.pop_back();
      }
    for (int row = 0; row < q_len; row += Config::positions) plan.blocks.push_back({s, row});
  }
  const std::vector<SplitItem> items = split(plan, multiprocessors);
  plan.items = items.size();
  plan.view.counts = to_device(std::vector<PlanCounts>{{int(plan.blocks.size()), plan.items, plan.stride}});
  plan.view.sequences = to_device(plan.sequences);
  plan.view.row_blocks = to_device(plan.blocks);
  plan.view.split_items = to_device(items);
  plan.view.block_table = to_device(plan.table);
  plan.view.tables = nullptr;
  plan.view.next_item = to_device(std::vector<int>{0, 0});
  return plan;
}

struct Cache {
  unsigned char *k = nullptr, *v = nullptr;
  long long slots;  // tokens
  explicit Cache(long long slots) : slots(slots) {
    CHECK(cudaMalloc(&k, slots * kv_heads * Config::head_dim * element_size));
    CHECK(cudaMalloc(&v, slots * kv_heads * Config::value_dim * element_size));
  }
  ~Cache() {
    cudaFree(k);
    cudaFree(v);
  }
  TensorMap map(unsigned char* data, int dim, int blocks) const {
    const cuuint64_t page = Config::paged ? Config::page_size : slots, pages = slots / page;
    const cuuint64_t head_bytes = dim * element_size, slot_bytes = kv_heads * head_bytes;
    if (slab_blocks > 1)
      return make_map(data, element_size, {64, page, cuuint64_t(dim) / 64, kv_heads, pages},
                      {slot_bytes, 128, head_bytes, page * slot_bytes},
                      {64, box_slots, cuuint32_t(blocks), 1, 1});
    return make_map(data, element_size, {cuuint64_t(dim), kv_heads, page, pages},
                    {head_bytes, slot_bytes, page * slot_bytes}, {block_columns, 1, box_slots, 1});
  }
  std::vector<int> pages(unsigned seed) const {
    std::vector<int> order(Config::paged ? slots / std::max(1, Config::page_size) : 0);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
  }
};

struct Workspace {
  float *out, *reference, *sum;
  int *arrivals, arrival_counters;
  Workspace(int slots, int arrival_counters) : arrival_counters(arrival_counters) {
    const long long rows = (long long)kv_heads * slots * Config::rows;
    CHECK(cudaMalloc(&out, rows * Config::value_dim * 4));
    CHECK(cudaMalloc(&reference, rows * 4));
    CHECK(cudaMalloc(&sum, rows * 4));
    CHECK(cudaMalloc(&arrivals, kv_heads * arrival_counters * 4));
    CHECK(cudaMemset(out, 0xff, rows * Config::value_dim * 4));
    CHECK(cudaMemset(reference, 0xff, rows * 4));
    CHECK(cudaMemset(sum, 0xff, rows * 4));
    CHECK(cudaMemset(arrivals, 0, kv_heads * arrival_counters * 4));
  }
};

struct Launch {
  ForwardParams params = {};
  int grid = 0;
  bool overlap = true;

  Launch(const Cache& cache, const Plan& plan, const Workspace& workspace, u16* q, u16* out, float* lse,
         const float* sinks, const float* scales) {
    params.q = make_map(q, 2, {Config::head_dim, query_heads, cuuint64_t(plan.tokens)},
                        {Config::head_dim * 2, query_heads * Config::head_dim * 2},
                        {64, Config::group, Config::positions});
    params.k = cache.map(cache.k, Config::head_dim, slab_blocks);
    params.v = cache.map(cache.v, Config::value_dim, value_blocks_of_box);
    params.out = {out, (long long)query_heads * Config::value_dim, Config::value_dim};
    params.lse = lse;
    params.sinks = sinks;
    params.k_scale = scales;
    params.v_scale = scales + kv_heads;
    params.k_rows = {cache.k, (long long)kv_heads * Config::head_dim, Config::head_dim};
    params.v_rows = {cache.v, (long long)kv_heads * Config::value_dim, Config::value_dim};
    params.k_page_stride = params.k_rows.token_stride * Config::page_size;
    params.v_page_stride = params.v_rows.token_stride * Config::page_size;
    params.plan = plan.view;
    params.scale = 1.f / std::sqrt(float(Config::head_dim));
    params.factor = (Config::scored ? 1.f : params.scale) * 1.4426950408889634f;
    params.kv_heads = kv_heads;
    params.partial_out = workspace.out;
    params.partial_reference = workspace.reference;
    params.partial_sum = workspace.sum;
    params.arrivals = workspace.arrivals;
    params.slots = plan.slots;
    params.arrival_counters = workspace.arrival_counters;
    params.item_room = std::max(1, plan.items);
    grid = multiprocessors();
    if (const char* wanted = std::getenv("GRID")) grid = std::atoi(wanted);
  }
  void operator()(cudaStream_t stream) const {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid / cluster * cluster;
    config.blockDim = decode_threads;
    config.dynamicSmemBytes = sizeof(DecodeMemory);
    config.stream = stream;
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (overlap) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {cluster, 1, 1};
    }
    CHECK(cudaLaunchKernelEx(&config, chorale_decode, params));
  }
};

float* make_scales() {
  std::vector<float> scales(2 * kv_heads, key_scale);
  std::fill(scales.begin() + kv_heads, scales.end(), value_scale);
  return to_device(scales);
}

// --- check ---------------------------------------------------------------------------------------------

struct Result {
  std::vector<u16> out;
  std::vector<float> lse;
  bool operator==(const Result& other) const {
    return out == other.out && std::memcmp(lse.data(), other.lse.data(), lse.size() * 4) == 0;
  }
};

struct Problem {
  std::vector<std::pair<int, int>> lengths;
  unsigned page_seed = 1;
  int grid = 0;
  int only = -1;  // this sequence alone
  int split_for = 0;
  bool poisoned = false;
};

const float* device_sinks() {
  std::vector<float> sinks(query_heads);
  for (int i = 0; i < query_heads; ++i) sinks[i] = 0.5f * i - 6;
  static const float* device = to_device(sinks);
  return device;
}

Result run(const Problem& problem, int seed, double* errors, int repeats) {
  long long keys = 0;
  for (auto [q_len, kv_len] : problem.lengths) keys += (kv_len + 255) / 256 * 256;
  Cache cache(keys + 4096);
  std::vector<int> pages = cache.pages(problem.page_seed);
  auto lengths = problem.lengths;
  if (problem.only >= 0)  // the others are there in name, so that inputs stay
    for (int i = 0; i < int(lengths.size()); ++i)
      if (i != problem.only) lengths[i].first = 0;
  Plan plan = make_plan(lengths, pages, problem.split_for != 0 ? problem.split_for : split_for());
  const int tokens = plan.tokens;
  u16 *q, *out;
  float* lse;
  const long long outputs = (long long)tokens * query_heads;
  CHECK(cudaMalloc(&q, outputs * Config::head_dim * 2));
  CHECK(cudaMalloc(&out, outputs * Config::value_dim * 2));
  CHECK(cudaMalloc(&lse, outputs * 4));
  // Poison: NaN where nothing was stored.
  CHECK(cudaMemset(cache.k, 0xff, cache.slots * kv_heads * Config::head_dim * element_size));
  CHECK(cudaMemset(cache.v, 0xff, cache.slots * kv_heads * Config::value_dim * element_size));
  const dim3 fill_grid(512, plan.sequences.size());
  fill_queries<<<fill_grid, 128>>>(q, plan.view.sequences, seed);
  fill_cache<Config::head_dim>
      <<<fill_grid, 128>>>(cache.k, 1, plan.view.sequences, plan.view.block_table, plan.stride, seed, false);
  fill_cache<Config::value_dim><<<fill_grid, 128>>>(cache.v, 2, plan.view.sequences, plan.view.block_table,
                                                    plan.stride, seed, problem.poisoned);
  CHECK(cudaGetLastError());
  Workspace workspace(plan.slots, plan.arrival_counters);
  float* scales = make_scales();
  Launch launch(cache, plan, workspace, q, out, lse, device_sinks(), scales);
  if (problem.grid != 0) launch.grid = problem.grid * cluster;

  Result result, again;
  result.out.resize(outputs * Config::value_dim);
  result.lse.resize(outputs);
  again = result;
  for (int i = 0; i < repeats; ++i) {
    CHECK(cudaMemset(out, 0xff, outputs * Config::value_dim * 2));
    CHECK(cudaMemset(lse, 0xff, outputs * 4));
    launch(nullptr);
    CHECK(cudaDeviceSynchronize());
    Result& to = i == 0 ? result : again;
    CHECK(cudaMemcpy(to.out.data(), out, to.out.size() * 2, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(to.lse.data(), lse, to.lse.size() * 4, cudaMemcpyDeviceToHost));
    if (i > 0 && !(again == result)) std::printf("FAIL: run %d differs from the first\n", i);
  }
  if (errors != nullptr) {
    double *ref_out, *ref_lse;
    CHECK(cudaMalloc(&ref_out, outputs * Config::value_dim * 8));
    CHECK(cudaMalloc(&ref_lse, outputs * 8));
    int most = 0;
    for (auto [q_len, kv_len] : problem.lengths) most = std::max(most, q_len);
    reference<<<dim3(most * query_heads, plan.sequences.size()), 256>>>(
        ref_out, ref_lse, plan.view.sequences, launch.params.sinks, launch.params.scale, seed);
    CHECK(cudaDeviceSynchronize());
    std::vector<double> want(outputs * Config::value_dim), want_lse(outputs);
    CHECK(cudaMemcpy(want.data(), ref_out, want.size() * 8, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(want_lse.data(), ref_lse, want_lse.size() * 8, cudaMemcpyDeviceToHost));
    double difference = 0, norm = 0, worst_row = 0, worst_lse = 0;
    for (long long row = 0; row < outputs; ++row) {
      double d = 0, n = 0;
      for (int i = 0; i < Config::value_dim; ++i) {
        const long long at = row * Config::value_dim + i;
        const u16 bits = result.out[at];
        float got;
        if (Config::bfloat16) {
          const u32 wide = u32(bits) << 16;
          std::memcpy(&got, &wide, 4);
        } else {
          const int e = bits >> 10 & 31, m = bits & 1023;
          got = (e == 31  ? NAN
                 : e == 0 ? std::ldexp(m, -24)
                          : std::ldexp(1024 + m, e - 25)) *
                (bits >> 15 ? -1 : 1);
        }
        d += (got - want[at]) * (got - want[at]);
        n += want[at] * want[at];
      }
      difference += d;
      norm += n;
      const double relative = n > 0 ? std::sqrt(d / n) : d;
      if (!(relative <= worst_row)) worst_row = relative;
      const double e = std::isinf(want_lse[row]) && want_lse[row] == result.lse[row]
                           ? 0
                           : std::abs(result.lse[row] - want_lse[row]);
      if (!(e <= worst_lse)) worst_lse = e;
    }
    errors[0] = std::sqrt(difference / norm);
    errors[1] = worst_row;
    errors[2] = worst_lse;
    cudaFree(ref_out);
    cudaFree(ref_lse);
  }
  for (void* p : {(void*)q, (void*)out, (void*)lse, (void*)workspace.out, (void*)workspace.reference,
                  (void*)workspace.sum, (void*)workspace.arrivals, (void*)scales})
    cudaFree(p);
  return result;
}

std::uint64_t hash(const Result& result) {
  std::uint64_t h = 1469598103934665603ull;
  const auto add = [&](const void* data, std::size_t size) {
    for (std::size_t i = 0; i < size; ++i)
      h = (h ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211ull;
  };
  add(result.out.data(), result.out.size() * 2);
  add(result.lse.data(), result.lse.size() * 4);
  return h;
}

// NaN among the last key's values is for rows that see that key, and for one column of theirs.
bool poison_stays(Problem problem, int seed, const Result& clean) {
  problem.poisoned = true;
  const Result result = run(problem, seed, nullptr, 1);
  bool good = true;
  long long row = 0;
  for (auto [q_len, kv_len] : problem.lengths)
    for (int q = 0; q < q_len; ++q)
      for (int head = 0; head < query_heads; ++head, ++row)
        for (int column = 0; column < Config::value_dim; ++column) {
          const long long at = row * Config::value_dim + column;
          const bool sees = !Config::masked || q == q_len - 1;
          const bool is_nan = (result.out[at] & 0x7fff) > (Config::bfloat16 ? 0x7f80 : 0x7c00);
          good = good && (sees && column == poisoned_column ? is_nan : result.out[at] == clean.out[at]);
        }
  return good;
}

int check_all() {
  const bool one_query = Config::positions == 1;
  const int more = one_query ? 1 : 2 * Config::positions + 1;
  const std::vector<Problem> problems = {
      {{{1, 1},
        {1, 127},
        {1, 128},
        {1, 129},
        {1, 1023},
        {1, 1024},
        {1, 1025},
        {1, 2047},
        {1, 3000},
        {1, 300}}},
      {{{1, 8192}, {1, 5000}, {1, 10240}}},
      {{{more, 700}, {1, 4097}, {more, 1030}, {std::max(1, more - 1), 2050}, {1, 33}}},
      {{{1, 40000}}},
      {{{1, 3000}, {more, 1500}}},
  };
  int failures = 0;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    Problem problem = problems[i];
    const int seed = i + 1 < problems.size() ? 7 + i : steep_seed;
    double errors[3];
    const Result result = run(problem, seed, errors, 20);
    const bool good = errors[0] < 6e-3 && errors[1] < 2e-2 && errors[2] < 1e-4;
    std::printf("%s problem %zu: error %.2e, worst row %.2e, lse %.1e, hash %016llx\n",
                good ? "ok  " : "FAIL", i, errors[0], errors[1], errors[2],
                static_cast<unsigned long long>(hash(result)));
    failures += !good;
    if (!poison_stays(problem, seed, result)) ++failures, std::printf("FAIL: poison spreads\n");
    problem.page_seed = 99;
    problem.grid = 5;
    if (!(run(problem, seed, nullptr, 2) == result))
      ++failures, std::printf("FAIL: other pages and grid, other bits\n");
    for (const int multiprocessors : {1, 8, 20, 10000}) {
      problem.split_for = multiprocessors;
      if (!(run(problem, seed, nullptr, 2) == result))
        ++failures, std::printf("FAIL: other items, other bits\n");
    }
    int row = 0;
    for (int s = 0; s < int(problem.lengths.size()); row += problem.lengths[s++].first) {
      problem.only = s;
      const Result alone = run(problem, seed, nullptr, 1);
      if (!std::equal(alone.out.begin(), alone.out.end(),
                      result.out.begin() + (long long)row * query_heads * Config::value_dim))
        ++failures, std::printf("FAIL: sequence %d alone, other bits\n", s);
    }
  }
  std::printf(failures == 0 ? "all good\n" : "%d failures\n", failures);
  return failures != 0;
}

// Few launches of little work, all the same with merges in two steps: for compute-sanitizer.
int touch() {
  const Result result = run({{{1, 130}, {Config::positions, 700}, {1, 18 * Config::chunk}}}, 3, nullptr, 1);
  std::printf("hash %016llx\n", static_cast<unsigned long long>(hash(result)));
  return 0;
}

// --- time ----------------------------------------------------------------------------------------------

double median_ms(cudaGraphExec_t graph, cudaStream_t stream, int repeats) {
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times(repeats);
  for (int i = -3; i < repeats; ++i) {
    usleep(1000);
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(graph, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaStreamSynchronize(stream));
    if (i >= 0) CHECK(cudaEventElapsedTime(&times[i], start, stop));
  }
  std::sort(times.begin(), times.end());
  return times[repeats / 2];
}

double time_case(const Cache& cache, int batch, int context, bool overlap) {
  const double bytes =
      1.0 * batch * context * kv_heads * (Config::head_dim + Config::value_dim) * element_size;
  const int launches = std::max(2, std::min(200, int(std::ceil(1e9 / bytes))));
  std::vector<int> pages = cache.pages(5);
  std::vector<Plan> plans;
  for (int i = 0; i < launches; ++i) {
    plans.push_back(
        make_plan(std::vector<std::pair<int, int>>(batch, {Config::positions, context}), pages, split_for()));
    if (!Config::paged && i > 0) {  // packed: each launch its own tokens
      for (Sequence& s : plans.back().sequences) s.kv_first += i * batch * context;
      plans.back().view.split_items = to_device(split(plans.back(), split_for()));
    }
  }
  const long long outputs = (long long)batch * Config::positions * query_heads;
  u16 *q, *out;
  float* lse;
  CHECK(cudaMalloc(&q, outputs * Config::head_dim * 2));
  CHECK(cudaMalloc(&out, outputs * Config::value_dim * 2));
  CHECK(cudaMalloc(&lse, outputs * 4));
  fill_queries<<<dim3(Config::positions, batch), 128>>>(q, plans[0].view.sequences, 3);
  Workspace workspace(plans[0].slots, plans[0].arrival_counters);
  float* scales = make_scales();
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaDeviceSynchronize());
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  const int runs = std::max(launches, 10);
  for (int i = 0; i < runs; ++i) {
    Launch launch(cache, plans[i % launches], workspace, q, out, lse, device_sinks(), scales);
    launch.overlap = overlap;
    launch(stream);
  }
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  const double us = median_ms(exec, stream, 15) / runs * 1e3;
  std::printf("%4d x %6d  %s  %8.2f us  %7.0f GB/s  (%d launches)\n", batch, context,
              overlap ? "overlap" : "plain  ", us, bytes / us * 1e-3, launches);
  std::fflush(stdout);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  for (Plan& plan : plans)
    for (const void* p : {(const void*)plan.view.counts, (const void*)plan.view.sequences,
                          (const void*)plan.view.row_blocks, (const void*)plan.view.split_items,
                          (const void*)plan.view.block_table, (const void*)plan.view.next_item})
      cudaFree(const_cast<void*>(p));
  for (void* p : {(void*)q, (void*)out, (void*)lse, (void*)workspace.out, (void*)workspace.reference,
                  (void*)workspace.sum, (void*)workspace.arrivals, (void*)scales})
    cudaFree(p);
  return us;
}

void time_copy(const Cache& cache) {
  const std::size_t bytes =
      std::min<std::size_t>(2ull << 30, cache.slots * kv_heads * Config::head_dim * element_size);
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float best = 1e9, ms;
  for (int i = 0; i < 6; ++i) {
    CHECK(cudaEventRecord(start));
    CHECK(cudaMemcpyAsync(cache.k, cache.v, bytes, cudaMemcpyDeviceToDevice));
    CHECK(cudaEventRecord(stop));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    best = std::min(best, ms);
  }
  std::printf("device copy: %.0f GB/s read and written\n", 2.0 * bytes / best * 1e-6);
}

int time_all(int argc, char** argv) {
  std::vector<std::pair<int, int>> cases;
  long long most = 0;
  for (int i = 2; i < argc; ++i) {
    int batch, context;
    if (std::sscanf(argv[i], "%dx%d", &batch, &context) != 2) return 2;
    cases.push_back({batch, context});
    const double bytes =
        1.0 * batch * context * kv_heads * (Config::head_dim + Config::value_dim) * element_size;
    most = std::max(most,
                    (long long)(std::max(2, std::min(200, int(std::ceil(1e9 / bytes))))) * batch * context);
  }
  Cache cache((most + 255) / 256 * 256);
  const long long words = cache.slots * kv_heads * Config::head_dim * element_size / 16;
  fill_noise<<<4096, 256>>>(reinterpret_cast<uint4*>(cache.k), words, 1);
  fill_noise<<<4096, 256>>>(reinterpret_cast<uint4*>(cache.v), words * Config::value_dim / Config::head_dim,
                            2);
  CHECK(cudaDeviceSynchronize());
  time_copy(cache);
  for (auto [batch, context] : cases) time_case(cache, batch, context, true);
  if (std::getenv("PLAIN") != nullptr)
    for (auto [batch, context] : cases) time_case(cache, batch, context, false);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  CHECK(cudaFuncSetAttribute(chorale_decode, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sizeof(DecodeMemory)));
  cudaFuncAttributes attributes;
  CHECK(cudaFuncGetAttributes(&attributes, chorale_decode));
  std::printf("%s; page %d, %d slabs of %d bytes, %zu bytes of shared memory, %d registers, %zu spilled\n",
              device.name, Config::paged ? Config::page_size : 0, slots, slab_bytes, sizeof(DecodeMemory),
              attributes.numRegs, attributes.localSizeBytes);
  device_sinks();
  if (argc == 2 && std::string(argv[1]) == "check") return check_all();
  if (argc == 2 && std::string(argv[1]) == "touch") return touch();
  if (argc > 2 && std::string(argv[1]) == "time") return time_all(argc, argv);
  std::fprintf(stderr, "usage: decode_bench check | touch | time BATCHxKEYS ...\n");
  return 2;
}
