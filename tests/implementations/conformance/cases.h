// The cases of the suite: every feature, at the shapes where kernels go wrong.
#pragma once

#include <vector>

#include "implementations/conformance/case.h"

namespace chorale::conformance {

// Where a kernel's loops begin and end: lengths next to these are the interesting ones.
struct Edges {
  int tile = 16, chunk = 50;  // of an implementation that has neither: any will do
  // From the fingerprint's parts "T" and "C", where it has them.
  static Edges of(const Fingerprint& fingerprint);
};

// A few seconds: every feature once.
std::vector<Case> fast_cases(const Edges& edges);
// Every feature at every kind of shape, and sweeps over head dimensions, page sizes, arrangements and fills.
// What a case does not sweep (type, heads, layout, arrangement) is drawn from `seed`.
std::vector<Case> full_cases(const Edges& edges, std::uint64_t seed = 1);

// For kernels of a GPU: the same features, shapes and fills, with the types, dimensions, heads and layouts
// that it has. Few enough of them differ in what is compiled that compiling them all takes a minute.
std::vector<Case> gpu_cases(const Edges& edges, std::uint64_t seed = 1);

}  // namespace chorale::conformance
