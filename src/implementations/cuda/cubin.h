// What a compiled kernel says about itself.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace chorale::cuda {

// From ptxas's report (--ptxas-options=-v) about one entry point; nothing if the log has no report on it.
struct Resources {
  int registers = 0;
  int stack_bytes = 0, spill_stores = 0, spill_loads = 0;  // of a thread
  int shared_bytes = 0;                                    // static
};
std::optional<Resources> read_resources(std::string_view log, std::string_view entry);

// The initial value of an int with this name in a cubin; nothing if it has none.
std::optional<int> read_constant(std::string_view cubin, std::string_view name);

}  // namespace chorale::cuda
