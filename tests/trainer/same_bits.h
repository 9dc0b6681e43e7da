// Whether two sets of parameters are the same, to the bit.
#pragma once

#include <cstring>

#include "model/model.h"

namespace chorale {

inline bool same_bits(const ParameterSet& a, const ParameterSet& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(a[i].value.view().data, b[i].value.view().data, a[i].value.bytes()) != 0) return false;
  return true;
}

}  // namespace chorale
