// Every implementation of the registry, once, as a parameter of tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "chorale/implementation.h"

namespace chorale {

inline std::vector<const Implementation*> servants() {
  std::vector<const Implementation*> all;
  for (const ImplementationName& name : implementation_names()) {
    for (const Implementation* servant : name.servants) {
      if (std::find(all.begin(), all.end(), servant) == all.end()) all.push_back(servant);
    }
  }
  return all;
}

class EveryImplementation : public ::testing::TestWithParam<const Implementation*> {
 protected:
  const Implementation& implementation() const { return *GetParam(); }
};

inline std::string servant_name(const ::testing::TestParamInfo<const Implementation*>& info) {
  return std::string(info.param->name());
}

}  // namespace chorale
