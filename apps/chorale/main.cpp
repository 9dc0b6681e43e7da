// chorale: the command line.
#include <fmt/core.h>

#include <exception>

#include "base/settings.h"
#include "commands.h"

int main(int argc, char** argv) {
  using namespace chorale;
  CLI::App app{"One attention for every role of a reinforcement-learning run", "chorale"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "chorale 0.1.0");

  app::Action action;
  app::add_mask_command(app, action);
  app::add_resolve_command(app, action);
  app::add_train_command(app, action);
  app::add_verify_command(app, action);
  app::add_generate_command(app, action);
  app::add_kernels_command(app, action);
  app::add_bench_command(app, action);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? app::exit_ok : app::exit_error;
  }
  if (const std::string problems = describe_settings_problems(); !problems.empty()) {
    fmt::print(stderr, "chorale: {}\n", problems);
    return app::exit_error;
  }
  try {
    const Result<int> status = action();
    if (status) return *status;
    fmt::print(stderr, "chorale: {}\n", status.status().message());
  } catch (const std::exception& error) {  // memory that ran out, or a defect; never a user's mistake
    fmt::print(stderr, "chorale: internal error: {}\n", error.what());
  }
  return app::exit_error;
}
