// `chorale train FILE [key=value ...]`: a training run.
#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "rl/run.h"

namespace chorale::app {
namespace {

volatile std::sig_atomic_t stop_requested = 0;

// The first SIGINT or SIGTERM asks the run to finish its step; a second one ends the process as usual.
void stop_after_this_step() {
  struct sigaction action {};
  action.sa_handler = [](int) { stop_requested = 1; };
  action.sa_flags = SA_RESETHAND;
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

struct Arguments {
  std::string file, output;
  std::vector<std::string> overrides;
  bool resume = false;

  std::string command(bool resuming) const {
    std::string text = "chorale train " + file;
    for (const std::string& override_ : overrides) text += fmt::format(" '{}'", override_);
    if (!output.empty()) text += " --out " + output;
    return resuming ? text + " --resume" : text;
  }
};

void print_line(std::string_view line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);  // progress is read as it happens, through a pipe too
}

Result<int> train(const Arguments& arguments) {
  stop_after_this_step();  // one that comes while the run is prepared is kept for its first step
  CHORALE_ASSIGN_OR_RETURN(const auto run,
                           Run::prepare({.config_file = arguments.file,
                                         .overrides = arguments.overrides,
                                         .output = arguments.output,
                                         .resume = arguments.resume,
                                         .command = arguments.command(arguments.resume),
                                         .print = print_line,
                                         .stop_requested = [] { return stop_requested != 0; }}));
  CHORALE_ASSIGN_OR_RETURN(const RunEnd end, run->train());
  if (end == RunEnd::interrupted) {
    print_line(fmt::format("stopped on request; checkpoint {}\ncontinue with: {}",
                           run->folder().checkpoint().value_or(""), arguments.command(true)));
    return exit_ok;
  }
  const bool promised = run->resolved().parity.requested == Parity::bitwise;
  return promised && !run->history().comparison.identical() ? exit_differs : exit_ok;
}

}  // namespace

void add_train_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "train",
      "Trains a small model by GRPO and compares rollout and trainer, token by token (docs/training.md)");
  command->add_option("file", arguments->file, "Configuration (YAML)")->required();
  command->add_option("overrides", arguments->overrides, "key=value, in the place of what the file says");
  command->add_option("--out", arguments->output, "Output folder (default: runs/<name>)");
  command->add_flag("--resume", arguments->resume, "Go on from the checkpoint that an interrupted run left");
  command->callback([arguments, &action] { action = [arguments] { return train(*arguments); }; });
}

}  // namespace chorale::app
