// A configuration as the commands read it that need its problem and its rollout, but no model's weights.
#pragma once

#include <string>
#include <vector>

#include "chorale/roles.h"
#include "rl/run_config.h"

namespace chorale::app {

struct RolloutFile {
  Roles roles;
  RunConfig run;  // its rollout section
  Problem problem;
};
// Every key must be known, here or to a training run.
Result<RolloutFile> read_rollout_file(const std::string& file, const std::vector<std::string>& overrides);

}  // namespace chorale::app
