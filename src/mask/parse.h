// The text form of masks and scores. Its grammar is in docs/masks.md.
#pragma once

#include <span>
#include <string_view>

#include "mask/expr.h"

namespace chorale::programs {

// An error names the column (from 1, in characters) and repeats the text with a caret under it.
Result<Expr> parse(std::string_view text, std::span<const Table> tables, Kind kind);

// Fails where two tables have one name.
Status check_names(std::span<const Table> tables);

}  // namespace chorale::programs
