// Keys and values in 8 bits: attention over codes has the bits of attention over the values that they stand
// for, packed or paged, forward and backward.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/float.h"
#include "chorale/attention.h"
#include "chorale/kv_cache.h"
#include "kv/quantise.h"

namespace chorale {
namespace {

using testing::HasSubstr;

constexpr int query_heads = 4, kv_heads = 2, head_dim = 20, value_dim = 12;
const std::vector<float> key_scales{0.03f, 0.011f}, value_scales{0.5f, 0.0071f};

Tensor random_tensor(DType dtype, std::initializer_list<std::int64_t> shape, std::mt19937& random) {
  Tensor tensor = Tensor::zeros(dtype, shape);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < tensor.elements(); ++i)
    store_element(tensor.view().data, dtype, i, normal(random));
  return tensor;
}

TensorView scales_view(const std::vector<float>& scales) {
  return TensorView::contiguous(scales.data(), DType::float32, {std::ssize(scales)});
}

bool same_bits(const Tensor& x, const Tensor& y) {
  return x.bytes() == y.bytes() && std::memcmp(x.view().data, y.view().data, x.bytes()) == 0;
}

// Two sequences that end inside a page and beyond a tile, all of whose tokens are queries.
struct Inputs {
  explicit Inputs(DType type) : dtype(type) {
    std::mt19937 random(5);
    q = random_tensor(dtype, {rows, query_heads, head_dim}, random);
    k = random_tensor(dtype, {rows, kv_heads, head_dim}, random);
    v = random_tensor(dtype, {rows, kv_heads, value_dim}, random);
    grad_out = random_tensor(dtype, {rows, query_heads, value_dim}, random);
    store_element(k.view().data, dtype, 7, 1000.0f);  // saturates
  }

  static constexpr std::int64_t rows = 81;
  const std::vector<std::int32_t> cu_seqlens{0, 11, 81};
  DType dtype;
  Tensor q, k, v, grad_out;
};

struct Outputs {
  Tensor out, lse, grad_q, grad_k, grad_v;
};

class Fp8Test : public testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  Attention attention(std::optional<DType> kv_dtype) const {
    const Problem problem{.query_heads = query_heads,
                          .kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .value_head_dim = value_dim,
                          .dtype = inputs.dtype,
                          .kv_dtype = kv_dtype,
                          .mask = mask::causal()};
    return Attention::create(problem, std::get<0>(GetParam()), Device::cpu(2),
                             {Phase::forward, Phase::backward})
        .value();
  }

  // Forward and backward; `scaled` is whether k and v are codes.
  Outputs run(const Batch& batch, const TensorView& k, const TensorView& v, bool scaled,
              const std::vector<float>& k_scales = key_scales) const {
    const Attention chosen = attention(scaled ? std::optional(DType::float8_e4m3) : std::nullopt);
    const auto plan = chosen.plan(batch).value();
    const TensorView k_scale = scaled ? scales_view(k_scales) : TensorView{};
    const TensorView v_scale = scaled ? scales_view(value_scales) : TensorView{};
    Outputs result{Tensor::zeros(inputs.dtype, {Inputs::rows, query_heads, value_dim}),
                   Tensor::zeros(DType::float32, {Inputs::rows, query_heads}),
                   Tensor::zeros(inputs.dtype, {Inputs::rows, query_heads, head_dim}),
                   Tensor::zeros(inputs.dtype, {Inputs::rows, kv_heads, head_dim}),
                   Tensor::zeros(inputs.dtype, {Inputs::rows, kv_heads, value_dim})};
    const Status forward = chosen.forward(*plan, {.q = inputs.q,
                                                  .k = k,
                                                  .v = v,
                                                  .out = result.out,
                                                  .lse = result.lse,
                                                  .k_scale = k_scale,
                                                  .v_scale = v_scale});
    EXPECT_TRUE(forward.is_ok()) << forward.message();
    const Status backward = chosen.backward(*plan, {.q = inputs.q,
                                                    .k = k,
                                                    .v = v,
                                                    .out = result.out,
                                                    .lse = result.lse,
                                                    .grad_out = inputs.grad_out,
                                                    .grad_q = result.grad_q,
                                                    .grad_k = result.grad_k,
                                                    .grad_v = result.grad_v,
                                                    .k_scale = k_scale,
                                                    .v_scale = v_scale});
    EXPECT_TRUE(backward.is_ok()) << backward.message();
    return result;
  }

  // The inputs through a cache of codes, by `store`.
  Outputs run_paged(int page_size) const {
    KvCache cache = KvCache::create({.kv_heads = kv_heads,
                                     .head_dim = head_dim,
                                     .value_head_dim = value_dim,
                                     .dtype = DType::float8_e4m3,
                                     .page_size = page_size,
                                     .pages = 100,
                                     .key_scales = key_scales,
                                     .value_scales = value_scales})
                        .value();
    std::vector<KvCache::SequenceId> sequences;
    std::vector<std::int32_t> lengths;
    for (std::size_t b = 0; b + 1 < inputs.cu_seqlens.size(); ++b) {
      const std::int32_t first = inputs.cu_seqlens[b], end = inputs.cu_seqlens[b + 1];
      sequences.push_back(cache.add());
      lengths.push_back(end - first);
      const auto slots = cache.append(sequences.back(), end - first).value();
      const Status stored =
          cache.store(0, slots, inputs.k.view().slice(0, first, end), inputs.v.view().slice(0, first, end));
      EXPECT_TRUE(stored.is_ok()) << stored.message();
    }
    return run(cache.batch(sequences, lengths).value(), cache.keys(0), cache.values(0), true);
  }

  static void expect_same(const Outputs& x, const Outputs& y) {
    EXPECT_TRUE(same_bits(x.out, y.out));
    EXPECT_TRUE(same_bits(x.lse, y.lse));
    EXPECT_TRUE(same_bits(x.grad_q, y.grad_q));
    EXPECT_TRUE(same_bits(x.grad_k, y.grad_k));
    EXPECT_TRUE(same_bits(x.grad_v, y.grad_v));
  }

  const Inputs inputs{std::get<1>(GetParam())};
  const Batch packed = Batch::packed(inputs.cu_seqlens);
};

TEST_P(Fp8Test, CodesHaveTheBitsOfWhatTheyStandFor) {
  const Outputs expected = run(packed, quantise_dequantise(inputs.k, key_scales),
                               quantise_dequantise(inputs.v, value_scales), false);
  const Tensor k_codes = quantise(inputs.k, key_scales), v_codes = quantise(inputs.v, value_scales);
  expect_same(run(packed, k_codes, v_codes, true), expected);
  for (const int page_size : {1, 8, 64}) {
    SCOPED_TRACE(page_size);
    expect_same(run_paged(page_size), expected);
  }

  const Outputs exact = run(packed, inputs.k, inputs.v, false);
  EXPECT_FALSE(same_bits(exact.out, expected.out)) << "control: quantisation does change the values";
  const Outputs swapped = run(packed, k_codes, v_codes, true, {key_scales[1], key_scales[0]});
  EXPECT_FALSE(same_bits(swapped.out, expected.out)) << "control: each head has its own scale";
}

TEST_P(Fp8Test, StridedCodesAndScales) {
  const Tensor k_codes = quantise(inputs.k, key_scales), v_codes = quantise(inputs.v, value_scales);
  const Outputs expected = run(packed, k_codes, v_codes, true);
  const Attention chosen = attention(DType::float8_e4m3);
  const auto plan = chosen.plan(packed).value();
  Tensor wide =
      Tensor::zeros(DType::float8_e4m3, {Inputs::rows, kv_heads, 2 * head_dim});  // every other element
  for (std::int64_t i = 0; i < k_codes.elements(); ++i)
    wide.as<float8_e4m3>()[static_cast<std::size_t>(2 * i)] =
        k_codes.as<float8_e4m3>()[static_cast<std::size_t>(i)];
  TensorView k = k_codes;
  k.data = wide.view().data;
  for (auto& stride : k.stride) stride *= 2;
  const std::vector<float> spread{key_scales[0], -1, key_scales[1]};
  TensorView k_scale = scales_view(key_scales);
  k_scale.data = const_cast<float*>(spread.data());
  k_scale.stride[0] = 2;
  const Tensor out = Tensor::zeros(inputs.dtype, {Inputs::rows, query_heads, value_dim});
  const Status status = chosen.forward(*plan, {.q = inputs.q,
                                               .k = k,
                                               .v = v_codes,
                                               .out = out,
                                               .k_scale = k_scale,
                                               .v_scale = scales_view(value_scales)});
  ASSERT_TRUE(status.is_ok()) << status.message();
  EXPECT_TRUE(same_bits(out, expected.out));
}

TEST_P(Fp8Test, ScalesAreCheckedBeforeAnythingRuns) {
  const Tensor k = quantise(inputs.k, key_scales), v = quantise(inputs.v, value_scales);
  const Tensor out = Tensor::zeros(inputs.dtype, {Inputs::rows, query_heads, value_dim});
  const auto status_with = [&](std::optional<DType> kv_dtype, const TensorView& keys,
                               const TensorView& k_scale, const TensorView& v_scale) {
    const Attention chosen = attention(kv_dtype);
    const auto plan = chosen.plan(packed).value();
    return chosen.forward(
        *plan, {.q = inputs.q, .k = keys, .v = v, .out = out, .k_scale = k_scale, .v_scale = v_scale});
  };
  const auto fp8 = DType::float8_e4m3;
  const TensorView k_scale = scales_view(key_scales), v_scale = scales_view(value_scales);
  for (const float bad : {0.0f, -0.5f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> scales{1, bad};
    EXPECT_THAT(status_with(fp8, k, scales_view(scales), v_scale).message(), HasSubstr("k_scale[1] is"));
    EXPECT_THAT(status_with(fp8, k, k_scale, scales_view(scales)).message(), HasSubstr("v_scale[1] is"));
  }
  EXPECT_THAT(status_with(fp8, k, {}, v_scale).message(), HasSubstr("k_scale: must be given"));
  EXPECT_THAT(status_with(fp8, k, k_scale, {}).message(), HasSubstr("v_scale: must be given"));
  EXPECT_THAT(status_with({}, inputs.k, k_scale, {}).message(), HasSubstr("k_scale: must be left empty"));
  EXPECT_THAT(status_with(fp8, inputs.k, k_scale, v_scale).message(), HasSubstr("must be float8_e4m3"));
  const std::vector<float> three{1, 1, 1};
  EXPECT_THAT(status_with(fp8, k, scales_view(three), v_scale).message(),
              HasSubstr("k_scale is float32 [3]: must be float32 [2]"));
}

TEST_P(Fp8Test, TheFingerprintAndTheProblemSaySo) {
  const Attention plain = attention({}), fp8 = attention(DType::float8_e4m3), same = attention(inputs.dtype);
  EXPECT_EQ(plain.fingerprint(), same.fingerprint());
  EXPECT_THAT(fp8.fingerprint().difference(plain.fingerprint()),
              HasSubstr("kv is float8_e4m3 here and absent there"));
  EXPECT_THAT(fp8.problem().describe(), HasSubstr("keys and values in float8_e4m3"));
  EXPECT_EQ(plain.problem().describe(), same.problem().describe());
  const auto plan = plain.plan(packed).value();
  EXPECT_THAT(fp8.forward(*plan, {}).message(), HasSubstr("kv_dtype is"));
}

INSTANTIATE_TEST_SUITE_P(All, Fp8Test,
                         testing::Combine(testing::Values("eager", "flash_attention_2"),
                                          testing::Values(DType::float32, DType::bfloat16, DType::float16)),
                         [](const auto& instance) {
                           return std::string(std::get<0>(instance.param)) + "_" +
                                  std::string(name(std::get<1>(instance.param)));
                         });

TEST(Fp8Problem, OtherNarrowTypesAreRefused) {
  Problem problem{
      .query_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::float32, .kv_dtype = DType::bfloat16};
  EXPECT_THAT(problem.validate().message(),
              HasSubstr("kv_dtype bfloat16: must be float8_e4m3, or float32 as dtype is"));
  problem = {.query_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::float8_e4m3};
  EXPECT_EQ(problem.validate().code(), Code::invalid_argument) << "nothing computes in 8 bits";
}

}  // namespace
}  // namespace chorale
