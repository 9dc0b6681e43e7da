// The registry and Attention::create: who serves what, and with which words a request is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "chorale/attention.h"
#include "implementations/registry.h"

namespace chorale {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const Problem usual{.query_heads = 2, .kv_heads = 1, .head_dim = 16};

TEST(Registry, NamesInTheOrderOfAuto) {
  std::vector<std::string_view> names;
  for (const auto& entry : implementation_names()) names.push_back(entry.name);
  EXPECT_THAT(names, ElementsAre("flash_attention_3", "flash_attention_2", "flex_attention", "sdpa", "eager",
                                 "flashinfer"));
  for (const auto& entry : implementation_names()) {
    EXPECT_EQ(entry.servants.empty(), !entry.reason.empty())
        << entry.name << ": a reason exactly where nobody serves";
    EXPECT_EQ(entry.rollout_only, entry.name == "flashinfer");
    EXPECT_EQ(find_implementation_name(entry.name), &entry);
  }
  EXPECT_EQ(find_implementation_name("auto"), nullptr);
}

TEST(Registry, FingerprintsDiffer) {
  const auto& tiled = *find_implementation_name("flash_attention_2")->servants[0];
  const auto& eager = *find_implementation_name("eager")->servants[0];
  EXPECT_NE(tiled.fingerprint(usual, Device::cpu()), eager.fingerprint(usual, Device::cpu()));
  EXPECT_EQ(find_implementation_name("flex_attention")->servants[0], &tiled);
  EXPECT_EQ(find_implementation_name("flashinfer")->servants[0], &tiled);
}

TEST(Create, AutoTakesTheFirstThatWorks) {
  EXPECT_EQ(Attention::create(usual).value().implementation().name(), "flash_attention_2");
  EXPECT_EQ(Attention::create(usual, "eager").value().implementation().name(), "eager");
  EXPECT_EQ(Attention::create(usual, "flashinfer", Device::cpu(), {Phase::prefill, Phase::decode})
                .value()
                .implementation()
                .name(),
            "flash_attention_2");
}

TEST(Create, AnExplicitNameNeverFallsBack) {
  const Status cuda = Attention::create(usual, "flash_attention_3").status();
  EXPECT_EQ(cuda.code(), Code::unsupported);
  EXPECT_EQ(cuda.message(), "flash_attention_3: runs on an NVIDIA GPU, not on the CPU");
  const Status sdpa = Attention::create(usual, "sdpa").status();
  EXPECT_EQ(sdpa.message(), "sdpa: this build links no vendor's attention library");
  const Status training =
      Attention::create(usual, "flashinfer", Device::cpu(), {Phase::prefill, Phase::backward}).status();
  EXPECT_EQ(training.message(),
            "flashinfer: serves a rollout's prefill and decode only, and backward was asked for");
}

TEST(Create, RefusesUnknownNamesAndBadProblems) {
  const Status unknown = Attention::create(usual, "flash_attention_4").status();
  EXPECT_EQ(unknown.code(), Code::invalid_argument);
  EXPECT_EQ(unknown.message(),
            "attention implementation 'flash_attention_4': must be one of auto, flash_attention_3, "
            "flash_attention_2, "
            "flex_attention, sdpa, eager, flashinfer");
  Problem wide = usual;
  wide.head_dim = 300;
  EXPECT_THAT(Attention::create(wide).status().message(), HasSubstr("head_dim 300"));
}

// A servant that supports nothing, to see that every reason is told.
class Picky : public Implementation {
 public:
  explicit Picky(std::string reason) : reason_(std::move(reason)) {}
  std::string_view name() const override { return "picky"; }
  Status supports(const Problem&, const Device&, Phase phase) const override {
    return phase == Phase::decode ? Status::ok() : Status::unsupported(reason_);
  }
  Fingerprint fingerprint(const Problem&, const Device&) const override { return {}; }
  Result<std::shared_ptr<const Plan>> plan(const Problem&, const Batch&, const Device&) const override {
    return Status::unsupported(reason_);
  }
  Status forward(const Plan&, const ForwardTensors&) const override { return Status::unsupported(reason_); }
  Status backward(const Plan&, const BackwardTensors&) const override { return Status::unsupported(reason_); }

 private:
  std::string reason_;
};

TEST(FirstSupported, RepeatsEveryReason) {
  const Picky one("head_dim 16: must be 17"), two("needs a Tuesday");
  const ImplementationName name{
      .name = "picky", .servants = {&one, &two}, .reason = "", .rollout_only = false};
  const Phase backward[] = {Phase::decode, Phase::backward}, decode[] = {Phase::decode};
  EXPECT_EQ(first_supported(name, usual, Device::cpu(), backward).status().message(),
            "head_dim 16: must be 17; needs a Tuesday");
  EXPECT_EQ(first_supported(name, usual, Device::cpu(), decode).value(), &one);
}

}  // namespace
}  // namespace chorale
