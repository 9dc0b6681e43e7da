// check: whether an implementation passes a case.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "implementations/conformance/case.h"
#include "implementations/conformance/expected.h"

namespace chorale::conformance {

// How close the worst row of each output came to its bound: at most 1 for a pass.
struct Margins {
  double out = 0, lse = 0, grad_q = 0, grad_k = 0, grad_v = 0, grad_sinks = 0;
  void include(const Margins& other);
};

struct Report {
  // A sentence each, with the case, its seed and the coordinate. None is a pass.
  std::vector<std::string> failures;
  Margins margins;
};

// Runs forward and backward and compares with the float64 reference:
//   - out, lse and the gradients within their rows' bounds, with inf and NaN in the same places;
//   - nothing written but the outputs' elements;
//   - the same bits where what nothing may depend on holds zeros instead of NaN and Inf;
//   - the same out when lse is not asked for.
// An implementation without a backward pass is asked for the forward one alone.
enum class Passes { both, forward };
Report check(const Implementation& implementation, const Case& test, const Device& device = Device::cpu(),
             Passes passes = Passes::both);

// The tensors of a case after forward and backward.
Result<Data> run(const Implementation& implementation, const Case& test, Background background,
                 const Device& device, Passes passes = Passes::both);

// Equal bytes, what lies around the view included.
bool same_bits(const Stored& x, const Stored& y);

}  // namespace chorale::conformance
