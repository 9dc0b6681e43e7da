// What fingerprints of all implementations have in common.
#pragma once

#include <string>

#include "chorale/implementation.h"

namespace chorale {

// Keys and values in a narrower type than the problem's are other inputs: "kv" says so, and only then.
inline Fingerprint with_kv_dtype(Fingerprint fingerprint, const Problem& problem) {
  if (problem.has_kv_scales())
    fingerprint.parts.push_back({"kv", std::string(name(problem.kv_dtype_or_default()))});
  return fingerprint;
}

}  // namespace chorale
