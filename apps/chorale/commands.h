// The subcommands of `chorale`: one file each, command_<name>.cpp, which adds itself to the command line.
#pragma once

#include <functional>

#include "chorale/status.h"

namespace CLI {
class App;
}

namespace chorale::app {

// Exit statuses: 0 done; 1 the answer is no (a comparison that differs); 2 the request could not be served,
// with one sentence on standard error.
inline constexpr int exit_ok = 0, exit_differs = 1, exit_error = 2;

// What a subcommand runs once its arguments are parsed: the exit status, or a failure (printed, exit status
// 2).
using Action = std::function<Result<int>()>;

// Each adds one subcommand to `app` and, when the user chose it, sets `action`.
void add_mask_command(CLI::App& app, Action& action);
void add_resolve_command(CLI::App& app, Action& action);
void add_train_command(CLI::App& app, Action& action);
void add_verify_command(CLI::App& app, Action& action);
void add_generate_command(CLI::App& app, Action& action);
void add_kernels_command(CLI::App& app, Action& action);
void add_bench_command(CLI::App& app, Action& action);
void add_commands(CLI::App& app, Action& action);  // all of these

// What main() does.
int run(int argc, char** argv);

}  // namespace chorale::app
