// Races builds of kernels/forward.cu against each other and against FlashAttention-3, in one process, in
// turns:
//     forward_race time GROUP CAUSAL BxL ... NAME=FILE.cubin ... [NAME=flash_3.so]
// TFLOP/s, in brackets the interquartile range in per cent of the median. HEADS, REPEATS and GAP (ms of idle
// before each sample) come from the environment.
//     forward_race check GROUP CAUSAL NAME=FILE.cubin ...
// Against float64 at sampled rows of mixed lengths, twenty runs equal to the bit, and a hash: builds of one
// order have one. bfloat16, head_dim 128, packed. forward_race.sh builds it and the cubins.
#include <dlfcn.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "host.cuh"

using namespace chorale::kernels;
using namespace chorale::bench;
using u16 = unsigned short;
using u32 = unsigned int;

namespace {

constexpr int dim = 128, tile = 128, block_rows = 128;

int setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

// --- what runs -----------------------------------------------------------------------------------------

using Flash = int (*)(void*, void*, void*, void*, float*, int*, int, int, int, int, int, int, cudaStream_t);
struct Build {
  std::string name;
  cudaKernel_t kernel = nullptr;
  int shared_bytes = 0, threads = 0;
  Flash flash = nullptr;  // bench/cuda/flash_3.cu
};
int constant(cudaLibrary_t library, const char* name) {
  void* address;
  std::size_t bytes;
  int value;
  CHECK(cudaLibraryGetGlobal(&address, &bytes, library, name));
  CHECK(cudaMemcpy(&value, address, sizeof value, cudaMemcpyDeviceToHost));
  return value;
}
Build load(const std::string& name, const std::string& file) {
  Build build{name};
  if (file.ends_with(".so")) {
    void* library = dlopen(file.c_str(), RTLD_NOW);
    if (library != nullptr) build.flash = reinterpret_cast<Flash>(dlsym(library, "flash_3_forward"));
    if (build.flash == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(2);
    }
    return build;
  }
  cudaLibrary_t library;
  CHECK(cudaLibraryLoadFromFile(&library, file.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0));
  CHECK(cudaLibraryGetKernel(&build.kernel, library, "chorale_forward"));
  build.shared_bytes = constant(library, "chorale_forward_smem");
  build.threads = constant(library, "chorale_forward_threads");
  CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(build.kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, build.shared_bytes));
  return build;
}

// --- inputs and the reference --------------------------------------------------------------------------

__host__ __device__ float to_float(u16 x) {
  const u32 bits = u32(x) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
__global__ void fill(u16* to, long long count, unsigned long long seed, float scale) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    const u32 bits = __float_as_uint(scale * bell(seed << 50 ^ i));
    to[i] = static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}
struct Row {
  int sequence, row, head;
};
// One block of 256 threads a row; dynamic shared memory: a double for each key.
__global__ void reference(const u16* q, const u16* k, const u16* v, const Sequence* sequences,
                          const Row* rows, double* out, double* lse, int heads, int group, bool causal,
                          double scale) {
  const Row at = rows[blockIdx.x];
  const Sequence s = sequences[at.sequence];
  const int kv_heads = heads / group, position = s.kv_len - s.q_len + at.row, thread = threadIdx.x;
  const int seen = causal ? max(0, min(s.kv_len, position + 1)) : s.kv_len;
  const u16* query = q + (static_cast<long long>(s.q_first + at.row) * heads + at.head) * dim;
  const auto row_of = [&](const u16* x, int key) {
    return x + (static_cast<long long>(s.kv_first + key) * kv_heads + at.head / group) * dim;
  };
  extern __shared__ double p[];
  __shared__ double partial[256];
  const auto reduce = [&](double x, bool largest) {
    __syncthreads();
    partial[thread] = x;
    for (int i = 128; i > 0; i /= 2) {
      __syncthreads();
      if (thread < i)
        partial[thread] =
            largest ? fmax(partial[thread], partial[thread + i]) : partial[thread] + partial[thread + i];
    }
    __syncthreads();
    return partial[0];
  };
  double maximum = -HUGE_VAL, sum = 0;
  for (int key = thread; key < seen; key += 256) {
    double score = 0;
    for (int i = 0; i < dim; ++i) score += double(to_float(query[i])) * to_float(row_of(k, key)[i]);
    p[key] = score * scale;
    maximum = fmax(maximum, p[key]);
  }
  maximum = reduce(maximum, true);
  for (int key = thread; key < seen; key += 256) sum += p[key] = exp(p[key] - maximum);
  sum = reduce(sum, false);
  if (thread < dim) {
    double o = 0;
    for (int key = 0; key < seen; ++key) o += p[key] * to_float(row_of(v, key)[thread]);
    out[blockIdx.x * static_cast<long long>(dim) + thread] = seen > 0 ? o / sum : 0;
  }
  if (thread == 0) lse[blockIdx.x] = seen > 0 ? maximum + log(sum) : -HUGE_VAL;
}

// --- a batch -------------------------------------------------------------------------------------------

using Lengths = std::vector<std::pair<int, int>>;  // queries, keys
struct Case {
  std::vector<Sequence> sequences;
  int heads, group, tokens = 0;
  bool causal;
  double operations = 0;
  u16 *q, *k, *v, *out;
  float* lse;
  int* semaphore;  // FlashAttention-3's
  ForwardParams params = {};

  Case(const Lengths& lengths, int heads, int group, bool causal)
      : heads(heads), group(group), causal(causal) {
    const int kv_heads = heads / group, positions = block_rows / group;
    int keys = 0;
    std::vector<std::pair<int, RowBlock>> blocks;  // keys seen
    for (const auto& [queries, length] : lengths) {
      for (int row = 0; row < queries; row += positions)
        blocks.push_back({causal ? std::min(length, length - queries + row + positions) : length,
                          {static_cast<int>(sequences.size()), row}});
      sequences.push_back({tokens, queries, keys, length});
      tokens += queries;
      keys += length;
      operations += 4. * queries * length * dim * heads * (causal ? 0.5 : 1);
    }
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    std::vector<RowBlock> row_blocks;
    for (const auto& [seen, block] : blocks) row_blocks.push_back(block);

    const long long queries = static_cast<long long>(tokens) * heads * dim,
                    cached = static_cast<long long>(keys) * kv_heads * dim;
    const auto take = [](auto*& to, long long count) { CHECK(cudaMalloc(&to, count * sizeof *to)); };
    take(q, queries), take(out, queries), take(k, cached), take(v, cached);
    take(lse, static_cast<long long>(tokens) * heads), take(semaphore, 1);
    fill<<<1024, 256>>>(q, queries, 1, 1.7f);  // larger, so that scores spread
    fill<<<1024, 256>>>(k, cached, 2, 1.f);
    fill<<<1024, 256>>>(v, cached, 3, 1.f);
    CHECK(cudaGetLastError());

    using N = cuuint64_t;
    const N row = dim * 2, q_row = heads * row, kv_row = kv_heads * row;
    params.q = make_map(q, 2, {dim, N(heads), N(tokens)}, {row, q_row},
                        {64, cuuint32_t(group), cuuint32_t(positions)});
    for (const auto& [map, data] : {std::pair(&params.k, k), {&params.v, v}})
      *map =
          make_map(data, 2, {dim, N(kv_heads), N(keys), 1}, {row, kv_row, kv_row * keys}, {64, 1, tile, 1});
    if (forward_warp_rows % group == 0)
      params.out_boxes = make_map(out, 2, {dim, N(heads), N(tokens)}, {row, q_row},
                                  {64, cuuint32_t(group), cuuint32_t(forward_warp_rows / group)});
    params.out = {out, static_cast<long long>(heads) * dim, dim};
    params.k_rows = {k, static_cast<long long>(kv_heads) * dim, dim};
    params.v_rows = {v, static_cast<long long>(kv_heads) * dim, dim};
    params.lse = lse;
    params.plan.sequences = to_device(sequences);
    params.plan.row_blocks = to_device(row_blocks);
    double costs = 0;
    for (const auto& [seen, block] : blocks) costs += seen;
    const int together = std::clamp(  // as heads_together() of block_order.h
        static_cast<int>(std::ceil(blocks[0].first * multiprocessors() / costs)), 1, kv_heads);
    params.plan.counts =
        to_device(std::vector<PlanCounts>{{static_cast<int>(row_blocks.size()), 0, 0, 0, together}});
    params.plan.next_item = to_device(std::vector<int>{0, 0});
    params.scale = 1 / std::sqrt(static_cast<float>(dim));
    params.factor = params.scale * 1.4426950408889634f;
    params.kv_heads = params.heads = kv_heads;
    CHECK(cudaDeviceSynchronize());
  }
  void forget() const {
    CHECK(cudaMemset(out, 0xff, 2ll * tokens * heads * dim));
    CHECK(cudaMemset(lse, 0xff, 4ll * tokens * heads));
  }
  void launch(const Build& build) {
    if (build.flash != nullptr) {
      CHECK(static_cast<cudaError_t>(build.flash(q, k, v, out, lse, semaphore,
                                                 static_cast<int>(sequences.size()), sequences[0].q_len,
                                                 heads, heads / group, causal, multiprocessors(), nullptr)));
      return;
    }
    void* arguments[] = {&params};
    cudaLaunchAttribute overlaps = {};
    overlaps.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlaps.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(multiprocessors());
    config.blockDim = dim3(build.threads);
    config.dynamicSmemBytes = build.shared_bytes;
    config.attrs = &overlaps;
    config.numAttrs = 1;  // params.h: the forward kernel overlaps
    CHECK(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(build.kernel), arguments));
  }
};

// --- check ---------------------------------------------------------------------------------------------

template <class T>
std::vector<T> to_host(const T* device, std::size_t count) {
  std::vector<T> host(count);
  CHECK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}
unsigned long long hash(const std::vector<u16>& x) {
  unsigned long long h = 1469598103934665603ull;
  for (const u16 word : x) h = (h ^ word) * 1099511628211ull;
  return h;
}
bool check(Case& batch, const Build& build) {
  std::vector<Row> rows;
  std::mt19937 random(7);
  for (std::size_t s = 0; s < batch.sequences.size(); ++s)
    for (int i = 0, queries = batch.sequences[s].q_len; queries > 0 && i < 24; ++i)
      rows.push_back({static_cast<int>(s),
                      i == 0   ? 0
                      : i == 1 ? queries - 1
                               : static_cast<int>(random() % queries),
                      static_cast<int>(random() % batch.heads)});
  std::vector<double> zero(rows.size() * dim);
  double *expected = to_device(zero), *expected_lse = to_device(zero);
  reference<<<static_cast<unsigned>(rows.size()), 256, 40000>>>(
      batch.q, batch.k, batch.v, batch.params.plan.sequences, to_device(rows), expected, expected_lse,
      batch.heads, batch.group, batch.causal, batch.params.scale);
  CHECK(cudaDeviceSynchronize());
  const std::size_t outputs = static_cast<std::size_t>(batch.tokens) * batch.heads;
  std::vector<u16> first;
  bool stable = true;
  for (int run = 0; run < 20; ++run) {
    batch.forget();
    batch.launch(build);
    CHECK(cudaDeviceSynchronize());
    const std::vector<u16> out = to_host(batch.out, outputs * dim);
    if (run == 0) first = out;
    stable = stable && out == first;
  }
  const std::vector<double> o = to_host(expected, rows.size() * dim), l = to_host(expected_lse, rows.size());
  const std::vector<float> lse = to_host(batch.lse, outputs);
  double worst = 0, worst_lse = 0;
  bool finite = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t at =
        static_cast<std::size_t>(batch.sequences[rows[i].sequence].q_first + rows[i].row) * batch.heads +
        rows[i].head;
    double error = 0, norm = 0;
    for (int c = 0; c < dim; ++c) {
      const double x = to_float(first[at * dim + c]);
      finite = finite && std::isfinite(x);
      error += (x - o[i * dim + c]) * (x - o[i * dim + c]);
      norm += o[i * dim + c] * o[i * dim + c];
    }
    if (norm > 0)
      worst = std::max(worst, std::sqrt(error / norm));
    else
      finite = finite && error == 0;
    if (std::isinf(l[i]))
      finite = finite && lse[at] == l[i];
    else
      worst_lse = std::max(worst_lse, std::abs(lse[at] - l[i]));
  }
  const bool good = stable && finite && worst < 6e-3 && worst_lse < 1e-4;
  std::printf("%-12s worst row %.2e, lse %.1e, %s, hash %016llx%s\n", build.name.c_str(), worst, worst_lse,
              stable ? "stable" : "NOT STABLE", hash(first), good ? "" : "  FAIL");
  return good;
}

// --- time ----------------------------------------------------------------------------------------------

void race(Case& batch, const std::vector<Build>& builds) {
  const int repeats = setting("REPEATS", 9), gap = setting("GAP", 20);
  const int launches =
      std::max(3, static_cast<int>(2e12 / batch.operations));  // else events are timed, and a waking card
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<std::vector<float>> times(builds.size());
  for (int run = 0; run <= repeats; ++run)  // the first one warms up
    for (std::size_t i = 0; i < builds.size(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(gap));
      CHECK(cudaEventRecord(start));
      for (int n = 0; n < launches; ++n) batch.launch(builds[i]);
      CHECK(cudaEventRecord(stop));
      CHECK(cudaEventSynchronize(stop));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, start, stop));
      if (run > 0) times[i].push_back(ms / launches);
    }
  for (std::vector<float>& t : times) {
    std::sort(t.begin(), t.end());
    const float median = t[t.size() / 2];
    std::printf(" %8.1f (%3.1f)", batch.operations / median * 1e-9,
                100 * (t[t.size() * 3 / 4] - t[t.size() / 4]) / median);
  }
  std::printf("\n");
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::fprintf(
        stderr, "forward_race: must be check or time, the group, 1 for causal or 0, shapes, NAME=FILE ...\n");
    return 2;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string mode = arguments[1];
  const int group = std::atoi(arguments[2]), heads = std::max(setting("HEADS", 16), group);
  const bool causal = std::atoi(arguments[3]) != 0;
  std::vector<Build> builds;
  std::vector<std::pair<int, int>> shapes;
  for (int i = 4; i < count; ++i) {
    const std::string argument = arguments[i];
    if (const auto equals = argument.find('='); equals != argument.npos)
      builds.push_back(load(argument.substr(0, equals), argument.substr(equals + 1)));
    else if (int batch, length; std::sscanf(argument.c_str(), "%dx%d", &batch, &length) == 2)
      shapes.push_back({batch, length});
  }
  cudaDeviceProp card;
  CHECK(cudaGetDeviceProperties(&card, 0));
  std::printf("%s, %d/%d heads, %s\n", card.name, heads, heads / group, causal ? "causal" : "all keys");
  if (mode == "check") {
    bool good = true;
    for (const Lengths& lengths :
         {Lengths{{1, 1}, {127, 127}, {128, 128}, {129, 129}, {0, 0}, {300, 300}, {513, 513}},
          Lengths{{1023, 1023}, {1024, 1024}, {1025, 1025}, {2500, 2500}},
          Lengths{{100, 700}, {130, 1300}, {33, 2049}, {200, 3000}}, Lengths{{260, 100}, {5, 5}}}) {
      Case batch(lengths, heads, group, causal);
      for (const Build& build : builds) good = check(batch, build) && good;
    }
    return good ? 0 : 1;
  }
  std::printf("%-10s", "");
  for (const Build& build : builds) std::printf(" %14s", build.name.c_str());
  std::printf("\n");
  for (const auto& [batch, length] : shapes) {
    Case made(Lengths(batch, {length, length}), heads, group, causal);
    std::printf("%-10s", (std::to_string(batch) + "x" + std::to_string(length)).c_str());
    race(made, builds);
  }
}
