#include "run_command.h"

#include <gtest/gtest.h>
#include <CLI/CLI.hpp>

#include <algorithm>

namespace chorale::app {

Outcome run_command(std::vector<std::string> words) {
  CLI::App cli;
  Action action;
  add_commands(cli, action);
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  try {
    cli.parse(words);
  } catch (const CLI::ParseError& error) {
    return {Status::invalid_argument(error.what()), ""};
  }
  testing::internal::CaptureStdout();
  Result<int> status = action();
  return {std::move(status), testing::internal::GetCapturedStdout()};
}

}  // namespace chorale::app
