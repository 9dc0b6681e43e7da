// store and copy_pages on a GPU against KvCache in host memory, bit for bit.
#include "implementations/cuda/cache_kernels.h"

#include <gmock/gmock.h>

#include <cstring>

#include "base/float.h"
#include "chorale/kv_cache.h"
#include "implementations/cuda/cuda_attention.h"
#include "implementations/cuda/on_gpu.h"
#include "kernels/cache_params.h"

namespace chorale {
namespace {

using cuda::DeviceMemory;
using ::testing::HasSubstr;

constexpr int kv_heads = 3, head_dim = 192, value_dim = 128, page_size = 4, pages = 9, tokens = 14;

class CacheKernels : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    problem_ = {
        .query_heads = kv_heads, .kv_heads = kv_heads, .head_dim = head_dim, .value_head_dim = value_dim};
    if (GetParam() == DType::float8_e4m3) problem_.kv_dtype = DType::float8_e4m3;
    if (const Status can = cuda_attention().supports(problem_, Device::cuda(), Phase::forward); !can.is_ok())
      GTEST_SKIP() << can.message();
    gpu_ = cuda::Gpu::get(0).value();
    if (testing::on_plan != nullptr) testing::on_plan(problem_);
  }
  // A copy of host memory on the device, kept for the test.
  void* on_device(const void* host, std::size_t bytes) {
    held_.push_back(DeviceMemory::allocate(*gpu_, bytes).value());
    const cuda::Gpu::Scope scope(*gpu_);
    EXPECT_EQ(gpu_->driver().copy_to_device(held_.back()->address(), host, bytes, nullptr), 0);
    EXPECT_EQ(gpu_->driver().synchronize_stream(nullptr), 0);
    return reinterpret_cast<void*>(held_.back()->address());
  }
  TensorView on_device(const TensorView& view) {
    TensorView moved = view;
    moved.data = on_device(view.data, static_cast<std::size_t>(view.elements()) * size_of(view.dtype));
    return moved;
  }
  std::vector<std::byte> from_device(const void* address, std::size_t bytes) {
    std::vector<std::byte> content(bytes);
    const cuda::Gpu::Scope scope(*gpu_);
    EXPECT_EQ(gpu_->driver().copy_to_host(content.data(), reinterpret_cast<cuda::DevicePointer>(address),
                                          bytes, nullptr),
              0);
    EXPECT_EQ(gpu_->driver().synchronize_stream(nullptr), 0);
    return content;
  }
  static Tensor numbered(int columns, float step) {
    Tensor tensor = Tensor::zeros(DType::bfloat16, {tokens, kv_heads, columns});
    for (std::int64_t i = 0; i < tensor.elements(); ++i)
      store_element(tensor.view().data, DType::bfloat16, i, step * static_cast<float>(i % 1009 - 500));
    return tensor;
  }
  static void expect_same(const TensorView& host, const std::vector<std::byte>& device) {
    ASSERT_EQ(device.size(), static_cast<std::size_t>(host.elements()) * size_of(host.dtype));
    EXPECT_EQ(std::memcmp(host.data, device.data(), device.size()), 0);
  }

  Problem problem_;
  cuda::Gpu* gpu_ = nullptr;
  std::vector<std::unique_ptr<DeviceMemory>> held_;
};
INSTANTIATE_TEST_SUITE_P(Types, CacheKernels, ::testing::Values(DType::bfloat16, DType::float8_e4m3),
                         [](const auto& entry) { return std::string(name(entry.param)); });

TEST_P(CacheKernels, StoreWritesWhatTheHostsCacheWrites) {
  KvCacheConfig config{.kv_heads = kv_heads,
                       .head_dim = head_dim,
                       .value_head_dim = value_dim,
                       .dtype = GetParam(),
                       .page_size = page_size,
                       .pages = pages};
  if (GetParam() == DType::float8_e4m3) {
    config.key_scales = {0.5f, 0.011f, 3};
    config.value_scales = {0.07f, 1, 0.3f};
  }
  KvCache cache = KvCache::create(config).value();
  const TensorView before_k = on_device(cache.keys(0)), before_v = on_device(cache.values(0));
  const auto sequence = cache.add();
  std::vector<std::int64_t> slots = cache.append(sequence, tokens).value();
  std::reverse(slots.begin(), slots.end());  // any order will do
  const Tensor k = numbered(head_dim, 0.01f), v = numbered(value_dim, 1);
  ASSERT_TRUE(cache.store(0, slots, k, v).is_ok());

  cuda::StoreTensors tensors{.k = on_device(k), .v = on_device(v), .k_cache = before_k, .v_cache = before_v};
  tensors.slots = static_cast<const std::int64_t*>(on_device(slots.data(), slots.size() * sizeof slots[0]));
  if (GetParam() == DType::float8_e4m3) {
    tensors.k_scale = on_device(cache.key_scales(0));
    tensors.v_scale = on_device(cache.value_scales(0));
  }
  const Status stored = cuda::store(*gpu_, problem_, tensors);
  ASSERT_TRUE(stored.is_ok()) << stored.message();
  expect_same(cache.keys(0), from_device(before_k.data, static_cast<std::size_t>(before_k.elements()) *
                                                            size_of(before_k.dtype)));
  expect_same(cache.values(0), from_device(before_v.data, static_cast<std::size_t>(before_v.elements()) *
                                                              size_of(before_v.dtype)));

  tensors.v_cache.stride[2] += 1;
  EXPECT_THAT(cuda::store(*gpu_, problem_, tensors).message(), HasSubstr("v_cache"));
}

TEST_P(CacheKernels, CopiesPagesOfEveryPool) {
  const std::size_t bytes = page_size * kv_heads * head_dim * size_of(GetParam());
  std::vector<std::byte> pool(bytes * pages);
  for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<std::byte>(i * 31 % 251);
  std::vector<std::byte> expected = pool;
  const kernels::PageCopy copies[] = {{0, 5}, {7, 1}};
  for (const auto& [from, to] : copies)
    std::memcpy(expected.data() + static_cast<std::size_t>(to) * bytes,
                pool.data() + static_cast<std::size_t>(from) * bytes, bytes);
  void* one = on_device(pool.data(), pool.size());
  void* two = on_device(pool.data(), pool.size());
  const auto stride = static_cast<long long>(bytes);
  const kernels::PagePool pools[] = {{one, one, stride, stride, stride}, {two, two, stride, stride, stride}};
  const Status copied = cuda::copy_pages(*gpu_, problem_, page_size,
                                         {.pools = on_device(pools, sizeof pools),
                                          .copies = on_device(copies, sizeof copies),
                                          .pool_count = 2,
                                          .copy_count = 2});
  ASSERT_TRUE(copied.is_ok()) << copied.message();
  EXPECT_EQ(from_device(one, pool.size()), expected);
  EXPECT_EQ(from_device(two, pool.size()), expected);
}

}  // namespace
}  // namespace chorale
