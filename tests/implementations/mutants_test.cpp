// The suite would notice: five broken kernels fail it, though a loose tolerance would let some of them pass.
#include "implementations/cpu/mutants.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/float.h"
#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;

constexpr std::pair<Mutant, std::string_view> mutants[] = {
    {Mutant::drop_last_key, "drop_last_key"},       {Mutant::drop_page, "drop_page"},
    {Mutant::skip_rescale, "skip_rescale"},         {Mutant::scale_1_01, "scale_1_01"},
    {Mutant::swap_value_pages, "swap_value_pages"},
};

conformance::Edges edges() {
  return conformance::Edges::of(cpu_attention_mutant(Mutant::none).fingerprint({}, Device::cpu()));
}

TEST(Mutants, TheUnbrokenKernelPasses) {
  for (const Case& test : conformance::fast_cases(edges())) {
    EXPECT_EQ(conformance::check(cpu_attention_mutant(Mutant::none), test).failures,
              std::vector<std::string>{});
  }
}

// The forward itself must be caught: a wrong gradient alone does not count.
TEST(Mutants, EachFailsTheFastSuite) {
  for (const auto& [mutant, name] : mutants) {
    std::vector<std::string> caught;
    const auto cases = conformance::fast_cases(edges());
    for (const Case& test : cases) {
      for (const std::string& failure : conformance::check(cpu_attention_mutant(mutant), test).failures) {
        if (failure.find(": out at ") == std::string::npos) continue;
        caught.push_back(failure);
        break;
      }
    }
    EXPECT_FALSE(caught.empty()) << name << " passes";
    if (caught.empty()) continue;
    fmt::print("{}: fails {} of {} cases, the first: {}\n", name, caught.size(), cases.size(), caught[0]);
  }
}

// What a test with allclose(atol, rtol) on bfloat16 would say of the same kernels, at a usual length.
bool passes_loose_tolerance(Mutant mutant) {
  constexpr double atol = 1.5e-2, rtol = 1e-2;
  const Case test{.feature = "loose tolerance",
                  .problem = {.query_heads = 4, .kv_heads = 2, .head_dim = 64, .mask = mask::causal()},
                  .sequences = {{8, 2000, 1}, {1, 1500, 2}},
                  .page_size = 16};
  const auto good =
      conformance::run(cpu_attention_mutant(Mutant::none), test, Background::zeros, Device::cpu()).value();
  const auto bad =
      conformance::run(cpu_attention_mutant(mutant), test, Background::zeros, Device::cpu()).value();
  const auto wanted = good.out.memory.as<bfloat16>(), got = bad.out.memory.as<bfloat16>();
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double x = to_float(got[i]), y = to_float(wanted[i]);
    if (std::isfinite(y) && !(std::abs(x - y) <= atol + rtol * std::abs(y))) return false;
  }
  return true;
}

TEST(Mutants, ALooseToleranceIsBlind) {
  std::vector<std::string_view> unseen;
  for (const auto& [mutant, name] : mutants) {
    if (passes_loose_tolerance(mutant)) unseen.push_back(name);
  }
  for (const auto name : unseen) fmt::print("{}: passes atol=1.5e-2, rtol=1e-2\n", name);
  EXPECT_FALSE(unseen.empty());
}

}  // namespace
}  // namespace chorale
