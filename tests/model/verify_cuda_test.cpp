// verify with attention on a GPU: a model's rollout and trainer agree to the bit and with float64. Skipped,
// saying so, where there is no Hopper GPU.
#include <gtest/gtest.h>

#include "implementations/cuda/on_gpu.h"
#include "model/fixture.h"
#include "rl/verify.h"

namespace chorale {
namespace {

class VerifyOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    shape_ = test::small_config(DType::bfloat16);
    shape_.head_dim = 64;
    if (const Status can = cuda_attention().supports(shape_.problem(), Device::cuda(), Phase::forward);
        !can.is_ok())
      GTEST_SKIP() << can.message();
    attention_ = std::make_unique<testing::OnGpu>(*cuda::Gpu::get(0).value());
  }

  VerifyReport run(const VerifyConfig& config) const {
    ResolvedRoles resolved =
        Roles().resolve_compared(shape_.problem(), Device::cuda(), shape_.num_hidden_layers).value();
    for (auto& [role, resolutions] : resolved.roles)
      for (Resolution& resolution : resolutions) {
        EXPECT_EQ(resolution.implementation, "flash_attention_3");
        resolution.chosen = attention_.get();
      }
    const Model model = Model::create(shape_, test::lively_parameters(shape_, 4)).value();
    return verify(model, resolved, config).value();
  }

  ModelConfig shape_;
  std::unique_ptr<testing::OnGpu> attention_;
};

TEST_F(VerifyOnGpu, RolloutAndTrainerAgreeAndAreNearFloat64) {
  const VerifyReport report = run({.requests = 4, .max_new_tokens = 12, .float64 = true});
  EXPECT_TRUE(report.passes()) << report.text();
  ASSERT_TRUE(report.float64.has_value());
  EXPECT_GT(report.float64->rows, report.positions * shape_.num_hidden_layers);
  EXPECT_GT(report.float64->worst, 0);
}

TEST_F(VerifyOnGpu, UnderPreemptionSmallPagesAndChunks) {
  VerifyConfig config{.requests = 8, .max_new_tokens = 20, .float64 = true};
  config.generator.page_size = 4, config.generator.pages = 24;
  config.generator.scheduler.tokens_per_step = 16, config.generator.scheduler.max_running = 5;
  const VerifyReport report = run(config);
  EXPECT_TRUE(report.passes()) << report.text();
}

}  // namespace
}  // namespace chorale
