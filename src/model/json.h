// JSON files, read strictly: what nlohmann_json accepts, without duplicate keys and without deep nesting.
#pragma once

#include <nlohmann/json.hpp>

#include <string_view>

#include "chorale/status.h"

namespace chorale {

// Errors name `file_name` and the line and column.
Result<nlohmann::json> parse_json(std::string_view text, std::string_view file_name);

}  // namespace chorale
