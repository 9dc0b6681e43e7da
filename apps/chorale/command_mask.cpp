// chorale mask EXPR: which tiles a mask leaves empty, partial and full, drawn in the terminal and as SVG.
#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/files.h"
#include "commands.h"
#include "mask/picture.h"

namespace chorale::app {
namespace {

using Json = nlohmann::json;

struct MaskArguments {
  std::string expression;
  std::int64_t q = 512, k = 512, tile = 64, tile_q = 0, tile_k = 0, b = 0, h = 0;
  std::vector<std::string> tables;
  std::string svg;
  int width = 0;
};

// Rows of equal length, and their values one after the other.
Result<Table> table_from_json(const std::string& name, const Json& json) {
  const auto wrong = [&](std::string_view why) {
    return Status::invalid_argument(fmt::format("table {}: {}", name, why));
  };
  if (!json.is_array()) return wrong("must be a list of numbers, or a list of such lists of one length");
  const bool nested = !json.empty() && json[0].is_array();
  const Json rows = nested ? json : Json::array({json});
  std::vector<std::int32_t> integers;
  std::vector<float> floats;
  bool any_float = false;
  for (const Json& row : rows) {
    if (!row.is_array() || row.size() != rows[0].size()) return wrong("its rows must be lists of one length");
    for (const Json& value : row) {
      if (!value.is_number()) return wrong(fmt::format("{} is not a number", value.dump().substr(0, 40)));
      floats.push_back(value.get<float>());
      any_float = any_float || value.is_number_float();
      const auto number = value.get<double>();
      const bool fits = number >= std::numeric_limits<std::int32_t>::min() &&
                        number <= std::numeric_limits<std::int32_t>::max();
      if (value.is_number_integer() && !fits) return wrong(fmt::format("{} is beyond 32 bits", value.dump()));
      integers.push_back(fits ? static_cast<std::int32_t>(number) : 0);
    }
  }
  if (!nested)
    return any_float ? Table::floats(name, std::move(floats)) : Table::integers(name, std::move(integers));
  const auto height = static_cast<std::int64_t>(rows.size()),
             width = static_cast<std::int64_t>(rows[0].size());
  return any_float ? Table::floats_2d(name, height, width, std::move(floats))
                   : Table::integers_2d(name, height, width, std::move(integers));
}

// NAME=1,2,3 or NAME=1,2;3,4 (two rows) or NAME=@FILE with JSON.
Result<Table> parse_table(const std::string& argument) {
  const std::size_t equals = argument.find('=');
  if (equals == std::string::npos || equals == 0)
    return Status::invalid_argument(fmt::format("--table {}: must be NAME=1,2,3 or NAME=@FILE", argument));
  const std::string name = argument.substr(0, equals), value = argument.substr(equals + 1);
  std::string text;
  if (value.starts_with('@')) {
    CHORALE_ASSIGN_OR_RETURN(text, read_file(value.substr(1), std::size_t{1} << 28));
  } else {
    text = value.find(';') == std::string::npos ? "[" : "[[";
    for (const char c : value) c == ';' ? text += "],[" : text += c;
    text += value.find(';') == std::string::npos ? "]" : "]]";
  }
  // What lies deeper than rows is not kept: a hostile file would only use up the stack.
  bool too_deep = false;
  const auto shallow = [&](int depth, Json::parse_event_t event, const Json&) {
    const bool opens =
        event == Json::parse_event_t::array_start || event == Json::parse_event_t::object_start;
    too_deep = too_deep || (opens && depth >= 2);
    return !too_deep;
  };
  const Json json = Json::parse(text, shallow, false);
  if (too_deep) return Status::invalid_argument(fmt::format("table {}: nested more than 2 deep", name));
  if (json.is_discarded())
    return Status::invalid_argument(fmt::format("table {}: {} is not {}", name, value.substr(0, 60),
                                                value.starts_with('@') ? "JSON" : "a list of numbers"));
  return table_from_json(name, json);
}

int terminal_width() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::clamp<int>(size.ws_col, 40, 120);
}

Result<int> draw(const MaskArguments& arguments) {
  std::vector<Table> tables;
  for (const std::string& argument : arguments.tables) {
    CHORALE_ASSIGN_OR_RETURN(Table table, parse_table(argument));
    tables.push_back(std::move(table));
  }
  CHORALE_ASSIGN_OR_RETURN(const Mask mask, Mask::parse(arguments.expression, tables));
  const auto or_default = [](auto value, auto otherwise) { return value == 0 ? otherwise : value; };
  CHORALE_ASSIGN_OR_RETURN(const MaskPicture picture,
                           draw_mask(mask, {.q_len = arguments.q,
                                            .kv_len = arguments.k,
                                            .tile_q = or_default(arguments.tile_q, arguments.tile),
                                            .tile_k = or_default(arguments.tile_k, arguments.tile),
                                            .b = arguments.b,
                                            .h = arguments.h,
                                            .columns = or_default(arguments.width, terminal_width())}));
  if (!arguments.svg.empty()) CHORALE_RETURN_IF_ERROR(write_file(arguments.svg, picture.svg));
  fmt::print("{}\n\n{}\n{}", mask.to_string(), picture.terminal, picture.summary);
  if (!arguments.svg.empty()) fmt::print("svg      {}\n", arguments.svg);
  return exit_ok;
}

}  // namespace

void add_mask_command(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<MaskArguments>();
  CLI::App* command = app.add_subcommand("mask", "Draw a mask: which tiles are empty, partial and full");
  command
      ->add_option("expression", arguments->expression,
                   "Such as \"causal and q - k < 128\"; docs/masks.md has the grammar")
      ->required();
  command->add_option("--q", arguments->q, "Queries")->capture_default_str();
  command->add_option("--k", arguments->k, "Keys; the last query stands at the last key")
      ->capture_default_str();
  command->add_option("--tile", arguments->tile, "Tile size")->capture_default_str();
  command->add_option("--tile-q", arguments->tile_q, "Height of tiles, if not --tile");
  command->add_option("--tile-k", arguments->tile_k, "Width of tiles, if not --tile");
  command->add_option("--b", arguments->b, "The sequence to draw")->capture_default_str();
  command->add_option("--h", arguments->h, "The head to draw")->capture_default_str();
  command->add_option("--table", arguments->tables,
                      "NAME=1,2,3 or NAME=1,2;3,4 or NAME=@FILE (JSON); may be repeated");
  command->add_option("--svg", arguments->svg, "Write the picture here too");
  command->add_option("--width", arguments->width, "Columns of the terminal picture");
  command->callback([arguments, &action] { action = [arguments] { return draw(*arguments); }; });
}

}  // namespace chorale::app
