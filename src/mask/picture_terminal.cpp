// A mask's mosaic in Unicode blocks.
#include <fmt/format.h>

#include <algorithm>

#include "mask/mosaic.h"

namespace chorale {
namespace {

// A cell inside full or empty tiles says so; where a partial tile comes in, its shade says how much is
// visible.
std::string_view block(const Cells::Cell& cell) {
  if (cell.pairs == 0) return " ";  // behind the last query or key, in the rest of a tile
  if (!cell.partial && !cell.empty) return "█";
  if (!cell.partial && !cell.full) return "·";
  if (cell.visible == 0) return "░";
  return cell.visible == cell.pairs ? "▓" : "▒";
}

// The first keys of tiles, above their left ends, as many as fit without touching.
std::string key_axis(const PictureOptions& o, const Mosaic& mosaic, const Cells& cells) {
  std::string line;
  for (std::int64_t tile = 0; tile < mosaic.tile_columns; ++tile) {
    const auto at = static_cast<std::size_t>(tile * cells.columns() / mosaic.tile_columns);
    const std::string label = fmt::format("{}", tile * o.tile_k);
    if (tile > 0 && (at < line.size() + 2 || at + label.size() > static_cast<std::size_t>(cells.columns())))
      continue;
    line += std::string(at - line.size(), ' ') + label;
  }
  return line;
}

}  // namespace

std::string draw_terminal(const PictureOptions& o, const Mosaic& mosaic, const Cells& cells) {
  const std::string margin(8, ' ');
  std::string edge;
  for (std::int64_t i = 0; i < cells.columns(); ++i) edge += "─";
  std::string picture = fmt::format("{:>8} {}\n{}┌{}┐\n", "q \\ k", key_axis(o, mosaic, cells), margin, edge);
  std::int64_t labelled = -1;
  for (std::int64_t row = 0; row < cells.rows(); ++row) {
    const std::int64_t tile = row * mosaic.tile_rows / cells.rows();
    const std::string label = tile == labelled ? "" : fmt::format("{}", o.kv_len - o.q_len + tile * o.tile_q);
    labelled = tile;
    picture += fmt::format("{:>7} │", label);
    for (std::int64_t column = 0; column < cells.columns(); ++column) picture += block(cells.at(row, column));
    picture += "│\n";
  }
  picture += fmt::format("{}└{}┘\n", margin, edge);
  picture +=
      fmt::format("{} · empty tile   ░▒▓ partial tile: hidden, mixed, visible   █ full tile\n", margin);
  return picture;
}

}  // namespace chorale
