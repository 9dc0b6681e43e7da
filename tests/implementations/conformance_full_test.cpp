// The whole conformance suite. How close each implementation comes to the bounds is printed, so that a bound
// that has become too wide, or an implementation that has become worse, is seen.
#include <fmt/format.h>

#include <map>

#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

class Conformance : public EveryImplementation {};
INSTANTIATE_TEST_SUITE_P(Implementations, Conformance, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Conformance, EveryFeatureAtEveryShape) {
  const auto edges = conformance::Edges::of(implementation().fingerprint({}, Device::cpu()));
  std::map<std::string_view, conformance::Margins> margins;
  const auto cases = conformance::full_cases(edges);
  for (const auto& test : cases) {
    const auto report = conformance::check(implementation(), test);
    for (const std::string& failure : report.failures) ADD_FAILURE() << failure;
    margins[name(test.problem.dtype)].include(report.margins);
  }
  fmt::print("{} cases; the worst row's error as a part of what is allowed:\n", cases.size());
  for (const auto& [type, m] : margins) {
    fmt::print(
        "  {:10} out {:.3f}  lse {:.3f}  grad_q {:.3f}  grad_k {:.3f}  grad_v {:.3f}  grad_sinks {:.3f}\n",
        type, m.out, m.lse, m.grad_q, m.grad_k, m.grad_v, m.grad_sinks);
  }
}

}  // namespace
}  // namespace chorale
