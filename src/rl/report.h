// The report of a run: one HTML page that needs nothing else.
#pragma once

#include <string>
#include <vector>

#include "chorale/roles.h"
#include "rl/history.h"
#include "rl/run_config.h"

namespace chorale {

struct Report {
  RunConfig config;
  ResolvedRoles roles;
  History history;
  std::string device;   // Device::describe()
  std::string command;  // what made it

  struct Picture {
    std::string caption, svg, summary;
  };
  std::vector<Picture> masks;

  struct Sample {
    std::string prompt, answer;
    double reward = 0;
  };
  std::vector<Sample> samples;  // held-out prompts and the trained model's answers

  std::string to_html() const;
};

}  // namespace chorale
