// Every implementation of the registry that runs on a processor, once, as a parameter of tests. (Those of
// GPUs have tests/implementations/cuda.)
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "chorale/implementation.h"

namespace chorale {

inline std::vector<const Implementation*> servants() {
  const Problem plain{.query_heads = 1, .kv_heads = 1, .head_dim = 64};
  std::vector<const Implementation*> all;
  for (const ImplementationName& name : implementation_names()) {
    for (const Implementation* servant : name.servants) {
      if (servant->supports(plain, Device::cpu(), Phase::forward).is_ok() &&
          std::find(all.begin(), all.end(), servant) == all.end())
        all.push_back(servant);
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
