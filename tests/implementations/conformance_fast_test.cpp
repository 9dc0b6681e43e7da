// The part of the conformance suite that a contributor runs all the time.
#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

class Conformance : public EveryImplementation {};
INSTANTIATE_TEST_SUITE_P(Implementations, Conformance, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Conformance, EveryFeatureOnce) {
  const auto edges = conformance::Edges::of(implementation().fingerprint({}, Device::cpu()));
  for (const auto& test : conformance::fast_cases(edges)) {
    for (const std::string& failure : conformance::check(implementation(), test).failures)
      ADD_FAILURE() << failure;
  }
}

}  // namespace
}  // namespace chorale
