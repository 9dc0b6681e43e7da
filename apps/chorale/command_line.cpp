#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <exception>

#include "base/settings.h"
#include "commands.h"
#include "simd/levels.h"

namespace chorale::app {

void add_commands(CLI::App& app, Action& action) {
  add_mask_command(app, action);
  add_resolve_command(app, action);
  add_train_command(app, action);
  add_verify_command(app, action);
  add_generate_command(app, action);
  add_kernels_command(app, action);
  add_bench_command(app, action);
}

int run(int argc, char** argv) {
  CLI::App app{"One attention for every role of a reinforcement-learning run", "chorale"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "chorale 0.1.0");
  Action action;
  add_commands(app, action);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_ok : exit_error;
  }
  if (const std::string problems = describe_settings_problems(); !problems.empty()) {
    fmt::print(stderr, "chorale: {}\n", problems);
    return exit_error;
  }
  if (const Status forced = simd::check_forced_level(); !forced.is_ok()) {
    fmt::print(stderr, "chorale: {}\n", forced.message());
    return exit_error;
  }
  try {
    const Result<int> status = action();
    if (status) return *status;
    fmt::print(stderr, "chorale: {}\n", status.status().message());
  } catch (const std::exception& error) {  // memory that ran out, or a defect; never a user's mistake
    fmt::print(stderr, "chorale: internal error: {}\n", error.what());
  }
  return exit_error;
}

}  // namespace chorale::app
