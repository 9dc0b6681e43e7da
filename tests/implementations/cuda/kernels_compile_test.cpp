// Every kernel of the list below compiles, without a GPU, and keeps its values in registers: spills beyond
// what is listed are a failure. Skipped where NVRTC is not installed (make extras brings it).
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>

#include "base/threads.h"
#include "implementations/cuda/compiler.h"
#include "implementations/cuda/cubin.h"
#include "implementations/cuda/kernel_sources.h"
#include "implementations/cuda/nvrtc.h"
#include "implementations/cuda/source.h"

namespace chorale::cuda {
namespace {

using ::testing::HasSubstr;

struct Listed {
  KernelKey key;
  int spill_bytes =
      0;  // stores and loads of a thread, at most: what was seen with NVRTC 13.0, and a little more
};

Problem problem(int head_dim, int value_dim = 0, int group = 1) {
  return {.query_heads = 8 * group,
          .kv_heads = 8,
          .head_dim = head_dim,
          .value_head_dim = value_dim,
          .mask = mask::causal()};
}
Problem with(Problem changed, const std::function<void(Problem&)>& change) {
  change(changed);
  return changed;
}

std::vector<Listed> listed() {
  using K = KernelKind;
  std::vector<Listed> list;
  const auto add = [&](K kind, const Problem& p, int page_size, int spill_bytes = 0, DecodeShape shape = {}) {
    list.push_back({kernel_key(kind, p, page_size, shape), spill_bytes});
  };
  // A decode keeps what does not change in registers, and spills some of it where its warps meet, once a
  // pass.
  constexpr int decode_spills = 150, wide_decode_spills = 200;
  // A forward spills little; but with 256 columns the total of the chunks that have ended does not fit beside
  // them: at a chunk's end, every 64 tiles, it goes through memory.
  constexpr int forward_spills = 200, wide_forward_spills = 2500;
  // Every head_dim, in training and in a generator.
  for (const auto& [head_dim, value_dim] :
       {std::pair(64, 64), {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 256}}) {
    add(K::forward, problem(head_dim, value_dim), 0, value_dim == 256 ? wide_forward_spills : forward_spills);
    for (const int cluster : {1, 2})
      add(K::decode, problem(head_dim, value_dim, 4), 16, decode_spills, {1, cluster});
  }
  // Every feature, with the usual head_dim.
  const Problem usual = problem(128, 128, 4);
  add(K::forward, with(usual, [](Problem& p) { p.mask = mask::all(); }), 0, forward_spills);
  add(K::forward, with(usual, [](Problem& p) { p.dtype = DType::float16; }), 0, forward_spills);
  add(K::forward, usual, 16, forward_spills);
  add(K::forward, usual, 1, forward_spills);
  add(K::forward, usual, 256, forward_spills);
  add(K::forward, with(usual, [](Problem& p) { p.score = score::softcap(50); }), 0, forward_spills);
  add(K::forward, with(usual, [](Problem& p) { p.score = score::alibi(score::alibi_slopes(32)); }), 0,
      forward_spills);
  add(K::forward, with(usual, [](Problem& p) { p.mask = mask::causal() && mask::window(1024); }), 0,
      forward_spills);
  const Mask documents = mask::causal() && mask::document(Table::integers("ids", {0}));
  add(K::forward, with(usual, [&](Problem& p) { p.mask = documents; }), 0, forward_spills);
  add(K::forward, with(usual, [](Problem& p) { p.sinks = true; }), 0, forward_spills);
  const auto with_codes = [](const Problem& p) {
    return with(p, [](Problem& q) { q.kv_dtype = DType::float8_e4m3; });
  };
  for (const int cluster : {1, 2}) {
    add(K::decode, with_codes(usual), 16, decode_spills, {1, cluster});
    add(K::decode, usual, 1, decode_spills, {1, cluster});
    add(K::decode, usual, 256, wide_decode_spills, {8, cluster});
  }
  for (const int page_size : {0, 1, 16, 256}) add(K::widen, with_codes(usual), page_size);
  for (const auto& [head_dim, value_dim] : {std::pair(64, 64), {96, 96}, {192, 128}, {192, 192}, {256, 256}})
    add(K::widen, with_codes(problem(head_dim, value_dim)), 16);
  add(K::widen, with_codes(with(usual, [&](Problem& p) { p.mask = documents; })), 16);
  add(K::decode, with(usual, [](Problem& p) { p.dtype = DType::float16; }), 64, decode_spills);
  add(K::decode, usual, 0, decode_spills);
  add(K::store, usual, 16);
  add(K::copy_pages, usual, 16);
  return list;
}

class KernelsCompile : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto nvrtc = Nvrtc::get(); !nvrtc) GTEST_SKIP() << nvrtc.status().message();
  }
};

TEST_F(KernelsCompile, WithoutSpillsBeyondTheListed) {
  const std::vector<Listed> all = listed();
  const KernelCache cache(KernelCache::default_folder());
  std::vector<Result<CompiledKernel>> compiled(all.size(), Status::internal("not compiled"));
  parallel_for(static_cast<std::int64_t>(all.size()), 0, [&](std::int64_t i, int) {
    const auto at = static_cast<std::size_t>(i);
    compiled[at] = compile_kernel(all[at].key, hopper, cache);
  });
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string what = all[i].key.describe();
    if (!compiled[i]) {
      ADD_FAILURE() << compiled[i].status().message();
      continue;
    }
    const CompiledKernel& kernel = *compiled[i];
    const auto resources = read_resources(kernel.log, all[i].key.entry());
    ASSERT_TRUE(resources) << what << ": ptxas said nothing of it:\n" << kernel.log;
    const int spilled = resources->spill_stores + resources->spill_loads;
    EXPECT_LE(spilled, all[i].spill_bytes) << what;
    EXPECT_GT(resources->registers, 0) << what;
    const auto shape = launch_shape(all[i].key, kernel);
    ASSERT_TRUE(shape) << shape.status().message();
    EXPECT_EQ(shape->threads % 32, 0) << what;
    EXPECT_LE(shape->shared_bytes + resources->shared_bytes, 227 * 1024) << what;
    // What the compiler gave up (setmaxnreg ignored, products serialised) it says in a warning.
    EXPECT_THAT(kernel.log, ::testing::Not(HasSubstr("warning"))) << what;
    fmt::print("{:<48} {:>3} registers {:>4} B spilled {:>6} B shared {:>5.1f} s{}\n", what,
               resources->registers, spilled, shape->shared_bytes + resources->shared_bytes, kernel.seconds,
               kernel.from_cache ? ", kept" : "");
  }
}

TEST_F(KernelsCompile, AnErrorComesWithTheCompilersWords) {
  const auto failed =
      (*Nvrtc::get().operator->())->compile("bad.cu", "int x = y;\n", {}, compiler_options(hopper));
  EXPECT_EQ(failed.status().code(), Code::internal);
  EXPECT_THAT(failed.status().message(), HasSubstr("identifier \"y\" is undefined"));
}

// The report that spills are read from, and constants in a cubin.
TEST_F(KernelsCompile, SpillsAndConstantsAreRead) {
  const std::string source = R"(
    extern "C" __device__ const int chorale_forward_threads = 384, chorale_forward_smem = 4096;
    extern "C" __global__ void __launch_bounds__(1024, 2) chorale_forward(float* x, int n) {
      float values[100];
      for (int i = 0; i < 100; ++i) values[i] = x[i * n];
      for (int j = 0; j < n; ++j)
        for (int i = 0; i < 100; ++i) values[i] = values[i] * values[(i + 7) % 100] + x[j];
      for (int i = 0; i < 100; ++i) x[i] = values[i];
    })";
  const Compilation made =
      (*Nvrtc::get().operator->())->compile("spill.cu", source, {}, compiler_options(hopper)).value();
  const auto resources = read_resources(made.log, "chorale_forward");
  ASSERT_TRUE(resources) << made.log;
  EXPECT_GT(resources->spill_stores, 0) << made.log;
  EXPECT_LE(resources->registers, 32);
  EXPECT_EQ(read_constant(made.cubin, "chorale_forward_threads"), 384);
  EXPECT_EQ(read_constant(made.cubin, "chorale_forward_smem"), 4096);
  EXPECT_EQ(read_constant(made.cubin, "chorale_forward_overlaps"), std::nullopt);
  // A cubin that was cut short is no reason to read beyond its end.
  for (std::size_t size = 0; size < made.cubin.size(); size += 97)
    (void)read_constant(std::string_view(made.cubin).substr(0, size), "chorale_forward_smem");
}

TEST_F(KernelsCompile, EmittedProgramsCompile) {
  // Programs of every operation, in a kernel of their own.
  const Mask mask = Mask::parse(
                        "(q * k - 7) / 3 % 5 < h and abs(q - k) <= max(b, 2) or "
                        "tanh(0.5 * q) < exp(-0.1 * k) and log(k + 1.0) < sqrt(q + 2.0)")
                        .value();
  const Score score =
      Score::parse("select(k % 2 == 0, tanh(score / 50), -score) * 1.5 + min(exp(score), 3.0)").value();
  Problem p = problem(128);
  p.mask = mask, p.score = score;
  const KernelKey key = kernel_key(KernelKind::forward, p, 0);
  const std::string source = R"(#include "program.cuh"
    extern "C" __global__ void chorale_forward(chorale::kernels::PlanView plan, float* out) {
      using namespace chorale::kernels;
      const int k = threadIdx.x, q = blockIdx.x;
      const RowValues row = program_rows(plan.tables, 0, 1, q);
      const KeyValues key = program_keys(plan.tables, 0, k);
      out[k] = program_visible(plan.tables, 0, 1, q, k, row, key) ? program_score(plan.tables, out[k], 0.1f, 0, 1, q, k, row, key) : 0;
      out[k] += program_coverage(plan.tables, 0, 1, 1, q, q + 3, k, k + 3);
    })";
  const auto made = (*Nvrtc::get().operator->())
                        ->compile("programs.cu", source, kernel_headers(key), compiler_options(hopper));
  EXPECT_TRUE(made) << made.status().message();
}

}  // namespace
}  // namespace chorale::cuda
