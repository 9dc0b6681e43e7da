// Caches of 8-bit codes: what `store` writes, and which scales are refused.
#include <cmath>
#include <limits>

#include "chorale/kv_cache.h"
#include "kv/fixture.h"
#include "kv/quantise.h"

namespace chorale {
namespace {

using testing::HasSubstr;
constexpr float infinity = std::numeric_limits<float>::infinity();

KvCacheConfig fp8_config() {
  return {.layers = 2,
          .kv_heads = 2,
          .head_dim = 3,
          .value_head_dim = 2,
          .dtype = DType::float8_e4m3,
          .page_size = 4,
          .pages = 3,
          .key_scales = {0.5f, 2, 3, 1},
          .value_scales = {0.25f, 1, 0.01f, 7}};
}

float code(const TensorView& pool, std::int64_t slot, std::int64_t head, std::int64_t i) {
  return load_element(pool.data, pool.dtype, slot * pool.stride[1] + head * pool.stride[2] + i);
}

TEST(Fp8Cache, StoreDividesByTheScaleRoundsAndSaturates) {
  KvCache cache = KvCache::create(fp8_config()).value();
  EXPECT_EQ(cache.keys(1).describe(), "float8_e4m3 [3, 4, 2, 3]");
  const auto slots = cache.append(cache.add(), 1).value();
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const Tensor k = filled(dtype, {1, 2, 3}, {1, -17, 300, 1, -17, 60000});
    const Tensor v = filled(dtype, {1, 2, 2}, {0, 3});
    ASSERT_TRUE(cache.store(0, slots, k, v).is_ok());
    EXPECT_EQ(code(cache.keys(0), slots[0], 0, 0), 2);
    EXPECT_EQ(code(cache.keys(0), slots[0], 0, 1), -32) << "-34 is halfway between -32 and -36";
    EXPECT_EQ(code(cache.keys(0), slots[0], 0, 2), 448) << "600 saturates";
    EXPECT_EQ(code(cache.keys(0), slots[0], 1, 0), 0.5f);
    EXPECT_EQ(code(cache.keys(0), slots[0], 1, 1), -8) << "-8.5 is halfway between -8 and -9";
    EXPECT_EQ(code(cache.keys(0), slots[0], 1, 2), 448);
    EXPECT_EQ(code(cache.values(0), slots[0], 0, 1), 12);
    EXPECT_EQ(code(cache.values(0), slots[0], 1, 1), 3);
    ASSERT_TRUE(cache.store(1, slots, k, v).is_ok());
    EXPECT_EQ(code(cache.keys(1), slots[0], 1, 0), 1) << "each layer has scales of its own";
  }
  const Tensor odd = filled(DType::float32, {1, 2, 3}, {-infinity, std::nanf(""), 1e-6f});
  ASSERT_TRUE(cache.store(0, slots, odd, filled(DType::float32, {1, 2, 2}, {infinity})).is_ok());
  EXPECT_EQ(code(cache.keys(0), slots[0], 0, 0), -448);
  EXPECT_TRUE(std::isnan(code(cache.keys(0), slots[0], 0, 1)));
  EXPECT_EQ(code(cache.keys(0), slots[0], 0, 2), 0);
  EXPECT_EQ(code(cache.values(0), slots[0], 1, 0), 448);
}

TEST(Fp8Cache, TheScaleThatWasStoredIsTheOneThatIsRead) {
  const KvCache cache = KvCache::create(fp8_config()).value();
  const auto scale = [](const TensorView& view, int head) {
    return static_cast<const float*>(view.data)[head];
  };
  EXPECT_EQ(cache.key_scales(0).describe(), "float32 [2]");
  EXPECT_EQ(scale(cache.key_scales(0), 1), 2);
  EXPECT_EQ(scale(cache.key_scales(1), 0), 3);
  EXPECT_EQ(scale(cache.value_scales(1), 0), 0.01f);
  EXPECT_EQ(scale(cache.value_scales(1), 1), 7);
  EXPECT_TRUE(cache.key_scales(2).empty());
  const KvCache plain = KvCache::create({.kv_heads = 1, .head_dim = 1, .pages = 1}).value();
  EXPECT_TRUE(plain.key_scales(0).empty());
}

TEST(Fp8Cache, QuantiseAndDequantiseAreWhatTheCacheDoes) {
  KvCache cache = KvCache::create(fp8_config()).value();
  const Tensor k = filled(DType::bfloat16, {4, 2, 3}, {1.7f, -0.3f, 900, 0.001f, 5.5f});
  const Tensor v = filled(DType::bfloat16, {4, 2, 2}, {0.7f, -1.3f, 0.02f});
  const auto slots = cache.append(cache.add(), 4).value();
  ASSERT_TRUE(cache.store(1, slots, k, v).is_ok());
  const std::vector<float> scales{3, 1};
  const Tensor codes = quantise(k, scales), values = quantise_dequantise(k, scales);
  for (std::int64_t i = 0; i < k.elements(); ++i) {
    const std::int64_t head = i / 3 % 2;
    const float stored = code(cache.keys(1), slots[static_cast<std::size_t>(i / 6)], head, i % 3);
    EXPECT_EQ(to_float(codes.as<float8_e4m3>()[static_cast<std::size_t>(i)]), stored);
    EXPECT_EQ(values.as<bfloat16>()[static_cast<std::size_t>(i)],
              from_float<bfloat16>(stored * scales[static_cast<std::size_t>(head)]));
  }
}

TEST(Fp8Cache, SwapAndCopyOnWriteMoveCodes) {
  KvCache cache = KvCache::create(fp8_config()).value();
  const auto a = cache.add();
  const auto slots = cache.append(a, 3).value();
  const Tensor k = filled(DType::float32, {3, 2, 3}, {1, 2, 3, 4, 5}),
               v = filled(DType::float32, {3, 2, 2}, {6, 7, 8});
  for (const int layer : {0, 1}) ASSERT_TRUE(cache.store(layer, slots, k, v).is_ok());
  const auto b = cache.fork(a).value();
  const auto own = cache.append(b, 1).value();
  const auto swapped = cache.swap_out(a).value();
  EXPECT_EQ(swapped.bytes(), std::size_t{3 * 2 * (6 + 4)});
  ASSERT_TRUE(cache.append(cache.add(), 4)) << "takes the page that a had";
  const auto back = cache.swap_in(swapped).value();
  const std::int64_t there = std::int64_t{cache.block_table(back).value()[0]} * 4 + 2, copied = own[0] - 1;
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(code(cache.keys(1), there, i / 3, i % 3), code(cache.keys(1), copied, i / 3, i % 3));
    EXPECT_NE(code(cache.keys(1), there, i / 3, i % 3), 0);
  }
}

TEST(Fp8Cache, RefusesUnusableScalesAndTypes) {
  const auto status_with = [](float scale) {
    KvCacheConfig config = fp8_config();
    config.value_scales[2] = scale;
    return KvCache::create(config).status();
  };
  for (const float scale : {0.0f, -1.0f, infinity, -infinity, std::nanf("")}) {
    EXPECT_EQ(status_with(scale).code(), Code::invalid_argument) << scale;
    EXPECT_THAT(status_with(scale).message(), HasSubstr("value_scales[2] is"));
  }
  KvCacheConfig config = fp8_config();
  config.key_scales.pop_back();
  EXPECT_THAT(KvCache::create(config).status().message(),
              HasSubstr("key_scales has 3 elements: must have 4 for 2 layers of 2 heads in float8_e4m3"));
  config = fp8_config();
  config.dtype = DType::bfloat16;
  EXPECT_THAT(KvCache::create(config).status().message(),
              HasSubstr("key_scales has 4 elements: must have 0"));

  KvCache cache = KvCache::create(fp8_config()).value();
  const auto slots = cache.append(cache.add(), 1).value();
  const Tensor codes = Tensor::zeros(DType::float8_e4m3, {1, 2, 3}),
               v = Tensor::zeros(DType::float32, {1, 2, 2});
  EXPECT_THAT(cache.store(0, slots, codes, v).message(),
              HasSubstr("k is float8_e4m3 [1, 2, 3]: must be float32, bfloat16 or float16 [1, 2, 3]"));
}

}  // namespace
}  // namespace chorale
