#include "rollout_file.h"

#include <utility>

#include "roles/config.h"

namespace chorale::app {

Result<RolloutFile> read_rollout_file(const std::string& file, const std::vector<std::string>& overrides) {
  CHORALE_ASSIGN_OR_RETURN(const Config config, Config::load(file, overrides));
  CHORALE_ASSIGN_OR_RETURN(Roles roles, Roles::from(config));
  CHORALE_ASSIGN_OR_RETURN(RunConfig run, RunConfig::read_rollout(config));
  allow_keys_of_runs(config);
  CHORALE_RETURN_IF_ERROR(config.reject_unknown());
  CHORALE_ASSIGN_OR_RETURN(Problem problem, roles.problem());
  return RolloutFile{std::move(roles), std::move(run), std::move(problem)};
}

}  // namespace chorale::app
