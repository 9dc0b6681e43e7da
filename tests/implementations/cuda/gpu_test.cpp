// flash_attention_3 on a GPU: the conformance suite with its float64 oracle, and every promise of bits.
// Skipped, saying so, where there is no Hopper GPU.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <bit>
#include <limits>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "base/float.h"
#include "base/threads.h"
#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/conformance/rows.h"
#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/gpu_fixture.h"
#include "implementations/cuda/on_gpu.h"
#include "implementations/cuda/order.h"
#include "implementations/cuda/replay.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::Data;
using conformance::differences;
using conformance::Passes;
using conformance::Rows;
using conformance::Sequence;
using testing::Caller;
using testing::GpuTest;
using ::testing::HasSubstr;
using testing::OnDevice;
using testing::OnGpu;

#ifdef CHORALE_FAKE_GPU  // which is slow
constexpr int chosen_chunk = 512;
#else
constexpr int chosen_chunk = 0;
#endif
constexpr int chunk_keys(int value_dim) {
  return chosen_chunk != 0 ? chosen_chunk : cuda::chunk_keys(value_dim);
}

class OnHopper : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    attention_ = std::make_unique<OnGpu>(*gpu_, chosen_chunk);
  }

  // Compiles what a batch of cases needs, many kernels at a time.
  void compile(const std::vector<Case>& cases, int cluster = 0) const {
    parallel_for(static_cast<std::int64_t>(cases.size()), 0, [&](std::int64_t i, int) {
      const Case& test = cases[static_cast<std::size_t>(i)];
      if (!cuda::supports_problem(test.problem).is_ok()) return;
      for (const cuda::KernelKey& key : keys_of(test, cluster))
        (void)cuda::compile_kernel(key, gpu_->arch(), cuda::KernelCache(cuda::KernelCache::default_folder()));
    });
  }
  static std::vector<cuda::KernelKey> keys_of(const Case& test, int cluster) {
    const Batch batch = conformance::batch_of(test);
    Problem bound = test.problem;
    bound.mask = bound.mask.with_tables(test.tables).value();
    bound.score = bound.score.with_tables(test.tables).value();
    const cuda::Order order = cuda::order_of(bound.head_dim, bound.value_dim());
    const auto work = cuda::measure_work(bound, batch, order, cuda::hopper_multiprocessors, {1, cluster});
    return cuda::kernel_keys(work, bound, order, test.page_size);
  }

  std::unique_ptr<OnGpu> attention_;
};

TEST_F(OnHopper, ConformsAtEveryFeatureAndShape) {
  const auto cases = conformance::gpu_cases({.tile = 128, .chunk = chunk_keys(128)});
  compile(cases);
  std::map<std::string_view, conformance::Margins> margins;
  int checked = 0;
  for (const Case& test : cases) {
    const auto report = conformance::check(*attention_, test, Device::cuda(), Passes::forward);
    for (const std::string& failure : report.failures) ADD_FAILURE() << failure;
    margins[name(test.problem.dtype)].include(report.margins);
    ++checked;
  }
  fmt::print("{} cases on {}; the worst row's error as a part of what is allowed:\n", checked,
             gpu_->describe());
  for (const auto& [type, m] : margins) fmt::print("  {:10} out {:.3f}  lse {:.3f}\n", type, m.out, m.lse);
}

// ---- Bits.

struct Feature {
  std::string_view name;
  Mask mask;
  Score score;
  bool sinks;
  std::optional<DType> kv_dtype = std::nullopt;
};

struct Shape {
  int head_dim, value_dim, query_heads, kv_heads;
  DType dtype;
};

std::string shape_name(const ::testing::TestParamInfo<Shape>& entry) {
  const Shape& shape = entry.param;
  return fmt::format("d{}v{}g{}{}", shape.head_dim, shape.value_dim, shape.query_heads / shape.kv_heads,
                     name(shape.dtype));
}

class Bits : public OnHopper, public ::testing::WithParamInterface<Shape> {
 protected:
  static std::vector<Feature> features() {
    return {{"causal", mask::causal(), {}, false},
            {"everything", mask::causal() && mask::window(300),
             score::alibi(score::alibi_slopes(GetParam().query_heads)).then(score::softcap(20)), true}};
  }
  // Whole sequences, from one token to more than a chunk.
  static Case whole(const Feature& feature) {
    const Shape& shape = GetParam();
    const int chunk = chunk_keys(shape.value_dim);
    return {.feature = std::string(feature.name),
            .problem = {.query_heads = shape.query_heads,
                        .kv_heads = shape.kv_heads,
                        .head_dim = shape.head_dim,
                        .value_head_dim = shape.value_dim,
                        .dtype = shape.dtype,
                        .kv_dtype = feature.kv_dtype,
                        .mask = feature.mask,
                        .score = feature.score,
                        .sinks = feature.sinks},
            .sequences = {
                {1, 1, 10}, {17, 17, 11}, {64, 64, 12}, {130, 130, 13}, {chunk + 150, chunk + 150, 14}}};
  }
  Rows forward(const Implementation& attention, const Case& test) const {
    const auto data = conformance::run(attention, test, Background::poison, Device::cuda(), Passes::forward);
    EXPECT_TRUE(data.has_value()) << data.status().message();
    return data ? conformance::forward_rows(test, *data.operator->()) : Rows();
  }
  Rows forward(const Case& test) const { return forward(*attention_, test); }

  static Feature codes() {
    return {"8-bit keys", mask::causal() && mask::window(900), {}, false, DType::float8_e4m3};
  }
  void expect_one(const Feature& feature) const {
    SCOPED_TRACE(feature.name);
    const Case packed = whole(feature);
    std::vector<Case> others;
    for (const int page_size : {1, 16, 64, 256})
      for (const std::uint64_t order : {1u, 2u}) {
        others.push_back(packed);
        others.back().page_size = page_size;
        others.back().page_order = order;
      }
    for (const std::int32_t chunk : {100, 512}) others.push_back(cut(packed, chunk, 16));
    const std::vector<Case> decodes = {cut(packed, 1, 16), cut(packed, 3, 16), cut(packed, 1, 0)};
    std::vector<Case> all = others;
    all.push_back(packed);
    compile(all);
    const Rows reference = forward(packed);
    ASSERT_FALSE(reference.empty());
    for (const Case& other : others)
      EXPECT_EQ(differences(reference, forward(other)), 0u)
          << "of " << reference.size() << " rows, " << other.describe();
    for (const int cluster : {1, 2}) {
      compile(decodes, cluster);
      const OnGpu attention(*gpu_, chosen_chunk, cluster);
      for (const Case& decode : decodes)
        EXPECT_EQ(differences(reference, forward(attention, decode)), 0u)
            << "of " << reference.size() << " rows, " << decode.describe() << ", cluster " << cluster;
    }
  }

  // Every sequence cut into pieces of queries, each of which sees the keys up to its own end.
  static Case cut(const Case& test, std::int32_t chunk, int page_size) {
    Case pieces = test;
    pieces.sequences.clear();
    // Of the longest only its end, where pieces are many: it crosses a tile's and a page's border.
    const std::int32_t late = test.sequences.back().keys - 24;
    for (const Sequence& s : test.sequences)
      for (std::int32_t begin = 0; begin < s.keys; begin += chunk)
        if (const std::int32_t end = std::min(begin + chunk, s.keys);
            chunk >= 64 || s.keys < 200 || end > late)
          pieces.sequences.push_back({end - begin, end, s.content});
    pieces.page_size = page_size;
    return pieces;
  }
};

#ifdef CHORALE_FAKE_GPU  // which is slow
const auto shapes = ::testing::Values(Shape{64, 64, 2, 1, DType::bfloat16}), runtime_shapes = shapes;
#else
const auto shapes =
    ::testing::Values(Shape{128, 128, 8, 2, DType::bfloat16}, Shape{128, 128, 4, 4, DType::float16},
                      Shape{64, 64, 8, 1, DType::bfloat16}, Shape{96, 96, 4, 2, DType::bfloat16},
                      Shape{192, 128, 4, 2, DType::bfloat16}, Shape{192, 192, 4, 2, DType::bfloat16},
                      Shape{256, 256, 4, 2, DType::bfloat16});
const auto runtime_shapes = ::testing::Values(Shape{128, 128, 8, 2, DType::bfloat16});
#endif
INSTANTIATE_TEST_SUITE_P(Shapes, Bits, shapes, shape_name);

TEST_P(Bits, PackedPagedChunkedAndDecodedAreOne) {
  for (const Feature& feature : features()) expect_one(feature);
}

// 8-bit keys: the forward kernel over widened ones, the decode kernel over codes.
TEST_P(Bits, PackedPagedChunkedAndDecodedAreOneWith8BitKeys) { expect_one(codes()); }

TEST_P(Bits, ConformsWith8BitKeys) {
  std::vector<Case> cases;
  for (const int page_size : {0, 1, 16, 64}) {
    cases.push_back(whole(codes()));
    cases.back().page_size = page_size;
    cases.back().sequences = {{9, 9, 1},   {130, 200, 2}, {0, 5, 3},    {3, 0, 4},
                              {40, 40, 5}, {1, 300, 6},   {70, 1100, 7}};
    cases.push_back(cases.back());
    cases.back().fill = conformance::Fill::nan_inside;  // some rows see them, others do not
  }
  compile(cases);
  for (const Case& test : cases)
    for (const std::string& failure :
         conformance::check(*attention_, test, Device::cuda(), Passes::forward).failures)
      ADD_FAILURE() << failure;
}

// All paths of the forward kernel (its head_dim allowing) in few tiles: more rows than a block has, two
// chunks, a partial tile. Small enough for compute-sanitizer (docs/cuda.md).
TEST_P(Bits, FewTilesPackedAndPagedAreOne) {
  const int keys = chunk_keys(GetParam().value_dim) + 76;
  for (const Feature& feature : features()) {
    SCOPED_TRACE(feature.name);
    Case packed = whole(feature);
    packed.sequences = {{130, 130, 20}, {40, keys, 21}};
    const Rows reference = forward(packed);
    for (const int page_size : {1, 16}) {
      Case paged = packed;
      paged.page_size = page_size;
      EXPECT_EQ(differences(reference, forward(paged)), 0u) << page_size;
    }
  }
}

TEST_P(Bits, AloneOrAmong256) {
  const Case test = whole(features()[0]);
  const Rows reference = forward(test);
  for (const Sequence& s : test.sequences) {
    Case alone = test;
    alone.sequences = {s};
    EXPECT_EQ(differences(reference, forward(alone)), 0u) << "sequence of " << s.keys << " alone";
  }
  Case decode = test;  // the last token of each, alone and with 250 others
  decode.page_size = 16;
  for (Sequence& s : decode.sequences) s.queries = 1;
  EXPECT_EQ(differences(reference, forward(decode)), 0u) << "one token of each";
  Case crowd = decode;
  for (std::uint64_t i = 0; i < 251; ++i)
    crowd.sequences.insert(crowd.sequences.begin() + static_cast<std::ptrdiff_t>(i % 3),
                           {1, static_cast<std::int32_t>(1 + i * 7), 100 + i});
  Rows mixed = forward(crowd);
  std::erase_if(mixed, [](const auto& row) { return std::get<0>(row.first) >= 100; });
  EXPECT_EQ(differences(reference, mixed), 0u) << "among 256";
}

#ifndef CHORALE_FAKE_GPU  // computes in float64, in no order of ours
// The comparison sees another order of arithmetic.
TEST_P(Bits, ControlAnotherChunkGivesOtherBits) {
  Case test = whole(features()[0]);
  test.sequences = {{700, 700, 14}};
  const OnGpu shorter(*gpu_, 256);
  const Rows reference = forward(test), other = forward(shorter, test);
  EXPECT_GT(differences(reference, other), reference.size() / 4);
}
#endif

class Runtime : public Bits {};
INSTANTIATE_TEST_SUITE_P(Shapes, Runtime, runtime_shapes, shape_name);

#ifdef CHORALE_FAKE_GPU
constexpr int runs = 3;
#else
constexpr int runs = 1000;
#endif

// Prefill and decode a thousand times each.
TEST_P(Runtime, AThousandRunsHaveTheSameBits) {
  for (const bool is_decode : {false, true}) {
    Case test = whole(features()[0]);
    test.page_size = 16;
    if (is_decode)
      for (Sequence& s : test.sequences) s.queries = 1;
    const Data data = conformance::make_data(test);
    const auto plan = attention_->plan(test.problem, data.batch, Device::cuda()).value();
    OnDevice device(*gpu_, data.forward());
    ASSERT_TRUE(device.to_device().is_ok());
    std::vector<std::byte> first;
    for (int run = 0; run < runs; ++run) {
      ASSERT_TRUE(cuda_attention().forward(*plan, device.tensors()).is_ok());
      if (run % 50 != 0 && run != runs - 1) continue;  // copying back is what takes time
      ASSERT_TRUE(device.to_host().is_ok());
      const auto* bytes = static_cast<const std::byte*>(data.out.memory.view().data);
      const std::vector<std::byte> now(bytes, bytes + data.out.memory.bytes());
      if (first.empty()) first = now;
      ASSERT_EQ(now, first) << "run " << run;
    }
  }
}

// NaN and infinity among the keys and values of many row blocks, several for each multiprocessor: those of
// which some rows do not see them are done twice.
TEST_P(Runtime, RowBlocksWithValuesThatAreNotFinite) {
  Case packed = whole(features()[0]);
  packed.fill = conformance::Fill::nan_inside;
#ifdef CHORALE_FAKE_GPU
  constexpr std::uint64_t sequences = 3;
#else
  constexpr std::uint64_t sequences = 60;
#endif
  packed.sequences.clear();
  for (std::uint64_t i = 0; i < sequences; ++i) packed.sequences.push_back({150, 150, 1 + i});
  for (const std::string& failure :
       conformance::check(*attention_, packed, Device::cuda(), Passes::forward).failures)
    ADD_FAILURE() << failure;
  const Rows reference = forward(packed);
  Case paged = packed;
  paged.page_size = 16;
  EXPECT_EQ(differences(reference, forward(paged)), 0u);
  for (const std::size_t i : {0, 1, 2}) {
    Case alone = packed;
    alone.sequences = {packed.sequences[i]};
    EXPECT_EQ(differences(reference, forward(alone)), 0u) << i;
  }
}

// A graph that was captured with one batch replays with others that update() puts into the plan.
TEST_P(Runtime, AGraphReplaysWithNewLengthsAndPages) {
  Case test = whole(features()[0]);
  test.page_size = 16;
  for (Sequence& s : test.sequences) s.queries = 1;
  const Data data = conformance::make_data(test);
  Caller caller(*gpu_);
  const cuda::Stream stream = caller.stream;
  OnDevice device(*gpu_, data.forward());
  ASSERT_TRUE(device.to_device().is_ok());
  const auto plan = testing::plan_of(*gpu_, test, data.batch);
  device.set_stream(stream);
  const Status captured = caller.capture([&] { return plan->forward(device.tensors()); });
  ASSERT_TRUE(captured.is_ok()) << captured.message();
  // The pool stays; each sequence loses some of its last tokens, and two are gone.
  for (const int shorter : {0, 1, 13, 60}) {
    Batch batch = data.batch;
    for (std::int32_t& length : batch.kv_lens) length = std::max(1, length - shorter);
    caller.expect_replay(*plan, batch, device, data, *attention_, fmt::format("{} shorter", shorter));
  }
  // More than there is room for is refused, and the plan is as it was.
  Case larger = test;
  for (std::uint64_t i = 0; i < 20; ++i) larger.sequences.push_back({1, 9, 50 + i});
  const Data more = conformance::make_data(larger);
  EXPECT_THAT(plan->update(more.batch, stream).message(), HasSubstr("room for"));
  EXPECT_EQ(plan->batch().sequences(), data.batch.sequences());
}

TEST_F(OnHopper, SaysWhatItCannotTake) {
  Case test{.feature = "refusals", .problem = {.query_heads = 2, .kv_heads = 2, .head_dim = 64}};
  test.sequences = {{3, 20, 1}};
  test.page_size = 16;
  const Data data = conformance::make_data(test);
  const auto plan = attention_->plan(test.problem, data.batch, Device::cuda()).value();
  OnDevice device(*gpu_, data.forward());
  const auto refusal = [&](auto change) {
    ForwardTensors tensors = device.tensors();
    change(tensors);
    return cuda_attention().forward(*plan, tensors).message();
  };
  EXPECT_THAT(refusal([](ForwardTensors& t) { t.k = t.k.slice(0, 0, 1), t.v = t.v.slice(0, 0, 1); }),
              HasSubstr("the pool has pages 0 to 0"));
  EXPECT_THAT(refusal([](ForwardTensors& t) { t.q.data = static_cast<std::byte*>(t.q.data) + 2; }),
              HasSubstr("must be a multiple of 16 bytes"));
  EXPECT_THAT(refusal([](ForwardTensors& t) { t.q.stride[1] = 66; }), HasSubstr("multiple of 16"));
  EXPECT_THAT(refusal([](ForwardTensors& t) { t.k.stride[2] = 0; }), HasSubstr("stride 0"));
  Batch beyond = data.batch;
  beyond.block_table[0] = -1;
  const auto bad = attention_->plan(test.problem, beyond, Device::cuda()).value();
  EXPECT_EQ(cuda_attention().forward(*bad, device.tensors()).code(), Code::out_of_range);

  // Positions have 32 bits.
  constexpr int keys = 1 << 30;
  Batch long_one;
  long_one.cu_seqlens_q = {0, 1};
  long_one.kv_lens = {keys};
  long_one.page_size = 256;
  long_one.block_table_stride = keys / long_one.page_size;
  long_one.block_table.resize(static_cast<std::size_t>(long_one.block_table_stride));
  EXPECT_THAT(attention_->plan(test.problem, long_one, Device::cuda()).status().message(),
              HasSubstr("sequence 0 has 1073741824 positions: must be at most 1073737728"));

  // Every page of many is looked at.
  test.page_size = 1;
  const Data many = conformance::make_data(test);
  OnDevice small_pages(*gpu_, many.forward());
  for (const std::size_t at : {0u, 2u, 5u, 19u})
    for (const std::int32_t page : {-1, std::numeric_limits<std::int32_t>::min(), 1 << 20}) {
      Batch beyond_pool = many.batch;
      beyond_pool.block_table[at] = page;
      const auto plan_of = attention_->plan(test.problem, beyond_pool, Device::cuda()).value();
      EXPECT_EQ(cuda_attention().forward(*plan_of, small_pages.tensors()).code(), Code::out_of_range)
          << at << ", " << page;
    }
}

}  // namespace
}  // namespace chorale
