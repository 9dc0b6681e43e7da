// chorale resolve FILE [key=value ...] [--device cuda] [--compared] [--json]: what every role would run, and
// why.
#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <string>
#include <vector>

#include "chorale/roles.h"
#include "commands.h"

namespace chorale::app {
namespace {

struct ResolveArguments {
  std::string file;
  std::vector<std::string> overrides;
  std::string device = "cpu";
  bool compared = false, json = false;
};

Result<int> resolve(const ResolveArguments& arguments) {
  CHORALE_ASSIGN_OR_RETURN(const Roles roles, Roles::load(arguments.file, arguments.overrides));
  CHORALE_ASSIGN_OR_RETURN(const Problem problem, roles.problem());
  CHORALE_ASSIGN_OR_RETURN(const Device device, Device::parse(arguments.device));
  CHORALE_ASSIGN_OR_RETURN(const ResolvedRoles resolved,
                           arguments.compared ? roles.resolve_compared(problem, device, roles.layers())
                                              : roles.resolve_all(problem, device, roles.layers()));
  fmt::print("{}", arguments.json ? resolved.to_json() + "\n" : resolved.explain());
  CHORALE_RETURN_IF_ERROR(resolved.check());
  return exit_ok;
}

}  // namespace

void add_resolve_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<ResolveArguments>();
  CLI::App* command = app.add_subcommand("resolve", "Say which attention every role would run, and why");
  command->add_option("file", arguments->file, "The configuration, in YAML")->required();
  command->add_option("overrides", arguments->overrides, "key=value, in the place of what the file says");
  command->add_option("--device", arguments->device, "Where it would run: cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_flag("--compared", arguments->compared,
                    "Only what verify compares: the actor's forward and the rollout");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &action] { action = [arguments] { return resolve(*arguments); }; });
}

}  // namespace chorale::app
