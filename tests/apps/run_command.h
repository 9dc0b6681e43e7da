// A subcommand of `chorale`, run in this process.
#pragma once

#include <string>
#include <vector>

#include "commands.h"

namespace chorale::app {

struct Outcome {
  Result<int> status;  // an exit status, or why not; invalid_argument if the words are no command line
  std::string output;  // what it printed
  std::string message() const { return status.status().message(); }
};

// `words` without the program's name.
Outcome run_command(std::vector<std::string> words);

}  // namespace chorale::app
