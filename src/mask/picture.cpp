#include "mask/picture.h"

#include <fmt/format.h>

#include <algorithm>

#include "mask/mosaic.h"

namespace chorale {
namespace {

constexpr std::int64_t max_pairs = std::int64_t{1} << 28, max_tiles = std::int64_t{1} << 20;
// The long side of the SVG's plot in pixels, and the most cells along it: none is smaller than a pixel.
constexpr std::int64_t svg_cells = 576;

Status check(const PictureOptions& options) {
  const auto positive = [](std::string_view what, std::int64_t value) {
    return value >= 1 ? Status::ok()
                      : Status::invalid_argument(fmt::format("{} {}: must be at least 1", what, value));
  };
  CHORALE_RETURN_IF_ERROR(positive("q length", options.q_len));
  CHORALE_RETURN_IF_ERROR(positive("k length", options.kv_len));
  CHORALE_RETURN_IF_ERROR(positive("tile height", options.tile_q));
  CHORALE_RETURN_IF_ERROR(positive("tile width", options.tile_k));
  if (static_cast<__int128>(options.q_len) * options.kv_len > max_pairs)
    return Status::invalid_argument(fmt::format("{} queries x {} keys: at most {} pairs can be drawn",
                                                options.q_len, options.kv_len, max_pairs));
  const std::int64_t tiles =
      ceil_divide(options.q_len, options.tile_q) * ceil_divide(options.kv_len, options.tile_k);
  if (tiles > max_tiles)
    return Status::invalid_argument(
        fmt::format("{} tiles: at most {} can be drawn; use larger tiles", tiles, max_tiles));
  if (options.columns < 20 || options.columns > 1000)
    return Status::invalid_argument(
        fmt::format("{} terminal columns: must be from 20 to 1000", options.columns));
  return Status::ok();
}

// Cells of the terminal: whole cells to a tile where there is room, characters being twice as high as wide.
Cells terminal_cells(const PictureOptions& o) {
  const std::int64_t across = ceil_divide(o.kv_len, o.tile_k), down = ceil_divide(o.q_len, o.tile_q);
  const std::int64_t room = o.columns - 10, most_rows = std::max<std::int64_t>(room / 2, 12);
  std::int64_t columns = room, rows = std::min(down, most_rows);
  if (across <= room) {
    std::int64_t per_tile = std::min(room / across, o.tile_k);
    if (per_tile > 1) per_tile -= per_tile % 2;
    columns = across * per_tile;
    if (down <= most_rows)
      rows = down * std::clamp<std::int64_t>(per_tile * o.tile_q / o.tile_k / 2, 1,
                                             std::min(most_rows / down, o.tile_q));
  }
  return Cells(rows, columns, down * o.tile_q, across * o.tile_k);
}

// Cells of the SVG: an element each, or as few elements as leave a cell a pixel.
Cells svg_elements(const PictureOptions& o) {
  const std::int64_t height = ceil_divide(o.q_len, svg_cells), width = ceil_divide(o.kv_len, svg_cells);
  const std::int64_t rows = ceil_divide(o.q_len, height), columns = ceil_divide(o.kv_len, width);
  return Cells(rows, columns, rows * height, columns * width);
}

std::string summarize(const PictureOptions& o, const Mosaic& m) {
  const double pairs = static_cast<double>(m.pairs.total());
  const auto percent = [&](std::int64_t part) { return 100.0 * static_cast<double>(part) / pairs; };
  return fmt::format(
      "tiles    {} of {} x {}: {} empty, {} partial, {} full\n"
      "visible  {} of {} pairs ({:.2f}%)\n"
      "work     {:.2f}% of the pairs are skipped; {:.2f}% are computed with the mask, {:.2f}% without\n",
      m.tiles.total(), o.tile_q, o.tile_k, m.tiles.empty, m.tiles.partial, m.tiles.full, m.visible,
      m.pairs.total(), percent(m.visible), percent(m.pairs.empty), percent(m.pairs.partial),
      percent(m.pairs.full));
}

}  // namespace

Result<MaskPicture> draw_mask(const Mask& mask, const PictureOptions& options) {
  CHORALE_RETURN_IF_ERROR(check(options));
  PictureOptions o = options;  // a tile larger than everything is everything
  o.tile_q = std::min(o.tile_q, o.q_len);
  o.tile_k = std::min(o.tile_k, o.kv_len);
  const Box everything{{o.b, o.b}, {o.h, o.h}, {o.kv_len - o.q_len, o.kv_len - 1}, {0, o.kv_len - 1}};
  CHORALE_RETURN_IF_ERROR(check_table_accesses(mask.program(), everything));
  Cells terminal = terminal_cells(o), elements = svg_elements(o);
  const Mosaic mosaic = survey(mask.program(), o, {&terminal, &elements});
  return MaskPicture{.tiles = mosaic.tiles,
                     .pairs = mosaic.pairs,
                     .visible = mosaic.visible,
                     .svg = draw_svg(mask.to_string(), o, mosaic, elements),
                     .terminal = draw_terminal(o, mosaic, terminal),
                     .summary = summarize(options, mosaic)};
}

Result<MaskPicture> draw_mask(const Mask& mask, std::int64_t q_len, std::int64_t kv_len, std::int64_t tile) {
  return draw_mask(mask, {.q_len = q_len, .kv_len = kv_len, .tile_q = tile, .tile_k = tile});
}

}  // namespace chorale
