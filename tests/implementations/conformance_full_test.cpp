// The whole conformance suite. How close each implementation comes to the bounds is printed, so that a bound
// that has become too wide, or an implementation that has become worse, is seen.
#include <fmt/format.h>

#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

using conformance::Margins;

class Conformance : public EveryImplementation {};
INSTANTIATE_TEST_SUITE_P(Implementations, Conformance, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Conformance, EveryFeatureAtEveryShape) {
  const auto edges = conformance::Edges::of(implementation().fingerprint({}, Device::cpu()));
  for (const auto& test : conformance::full_cases(edges)) {
    for (const std::string& failure : conformance::check(implementation(), test)) ADD_FAILURE() << failure;
  }
}

}  // namespace
}  // namespace chorale
