// A mask's mosaic as SVG.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "mask/mosaic.h"

namespace chorale {
namespace {

// Names are scoped, so that the picture can stand inside a page with a style of its own.
constexpr std::string_view style = R"css(
.chorale-mask .panel { fill: #ffffff; }
.chorale-mask text { fill: #45505f; font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
.chorale-mask text.title { fill: #1b2330; font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
.chorale-mask .empty { fill: #eef1f5; }
.chorale-mask .partial { fill: #fdecd2; }
.chorale-mask .visible { fill: #d97706; }
.chorale-mask .full { fill: #2563eb; }
.chorale-mask .lines { stroke: #ffffff; stroke-opacity: 0.55; fill: none; }
.chorale-mask .frame { stroke: #98a4b5; fill: none; }
@media (prefers-color-scheme: dark) {
.chorale-mask .panel { fill: #1b212b; }
.chorale-mask text { fill: #98a4b5; }
.chorale-mask text.title { fill: #e6eaf0; }
.chorale-mask .empty { fill: #262e3b; }
.chorale-mask .partial { fill: #43371f; }
.chorale-mask .visible { fill: #fbbf5c; }
.chorale-mask .full { fill: #6ea8fe; }
.chorale-mask .lines { stroke: #1b212b; }
.chorale-mask .frame { stroke: #5b6676; }
}
)css";

constexpr double long_side = 576, left = 64, top = 76, right = 20, below = 40;

std::string escape(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

// Where the plot lies on the page and how positions map to it. Long thin masks are widened to stay visible.
struct Plot {
  explicit Plot(const PictureOptions& o) {
    const auto q = static_cast<double>(o.q_len), k = static_cast<double>(o.kv_len),
               scale = long_side / std::max(q, k);
    width = std::max(k * scale, 48.0);
    height = std::max(q * scale, 24.0);
    x_scale = width / k;
    y_scale = height / q;
  }
  double width, height, x_scale, y_scale;
  double page_width() const { return std::max(left + width + right, left + long_side + right); }
  double page_height() const { return top + height + below; }
};

// Rectangles of one row, [first, end) wide and `height` high, as a path; neighbours that share `member` are
// one.
template <class Member>
void append_runs(std::string& path, std::int64_t count, double y, double height, double step, double limit,
                 const Member& member) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!member(i)) continue;
    const std::int64_t first = i;
    while (i + 1 < count && member(i + 1)) ++i;
    const double x = static_cast<double>(first) * step,
                 end = std::min(static_cast<double>(i + 1) * step, limit);
    path += fmt::format("M{:g} {:g}h{:g}v{:g}h{:g}z", x, y, end - x, height, x - end);
  }
}

std::string tiles_of(Coverage kind, const PictureOptions& o, const Mosaic& mosaic) {
  std::string path;
  for (std::int64_t row = 0; row < mosaic.tile_rows; ++row) {
    const std::int64_t y = row * o.tile_q;
    append_runs(path, mosaic.tile_columns, static_cast<double>(y),
                static_cast<double>(std::min(o.tile_q, o.q_len - y)), static_cast<double>(o.tile_k),
                static_cast<double>(o.kv_len),
                [&](std::int64_t column) { return mosaic.kind(row, column) == kind; });
  }
  return path;
}

// The visible elements of partial tiles. Where a cell holds several, it is drawn in one of four strengths.
constexpr int strengths = 4;
std::string elements_of(int strength, const PictureOptions& o, const Cells& cells) {
  std::string path;
  for (std::int64_t row = 0; row < cells.rows(); ++row) {
    const double y = static_cast<double>(row) * cells.cell_height();
    append_runs(path, cells.columns(), y, std::min(cells.cell_height(), static_cast<double>(o.q_len) - y),
                cells.cell_width(), static_cast<double>(o.kv_len), [&](std::int64_t column) {
                  const Cells::Cell& cell = cells.at(row, column);
                  return cell.partial && (cell.visible * strengths + cell.pairs - 1) / cell.pairs == strength;
                });
  }
  return path;
}

// Tiles between two labels of an axis: a power of two that leaves at most `most` labels.
std::int64_t label_step(std::int64_t tiles, std::int64_t most) {
  std::int64_t step = 1;
  while (tiles / step > most) step *= 2;
  return step;
}

std::string grid_lines(const Plot& plot, const PictureOptions& o, const Mosaic& mosaic) {
  constexpr std::int64_t most_lines = 96;  // more would hide what they divide
  std::string path;
  if (mosaic.tile_columns <= most_lines)
    for (std::int64_t i = 1; i < mosaic.tile_columns; ++i)
      path += fmt::format("M{:.2f} {}v{:.2f}", left + static_cast<double>(i * o.tile_k) * plot.x_scale, top,
                          plot.height);
  if (mosaic.tile_rows <= most_lines)
    for (std::int64_t i = 1; i < mosaic.tile_rows; ++i)
      path += fmt::format("M{} {:.2f}h{:.2f}", left, top + static_cast<double>(i * o.tile_q) * plot.y_scale,
                          plot.width);
  return path;
}

std::string axes(const Plot& plot, const PictureOptions& o, const Mosaic& mosaic) {
  std::string svg;
  const auto columns = static_cast<std::int64_t>(plot.width / 64),
             rows = static_cast<std::int64_t>(plot.height / 24);
  const std::int64_t column_step = label_step(mosaic.tile_columns, std::max<std::int64_t>(columns, 1));
  for (std::int64_t i = 0; i < mosaic.tile_columns; i += column_step)
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                       left + static_cast<double>(i * o.tile_k) * plot.x_scale, top - 6, i * o.tile_k);
  const std::int64_t row_step = label_step(mosaic.tile_rows, std::max<std::int64_t>(rows, 1));
  for (std::int64_t i = 0; i < mosaic.tile_rows; i += row_step)
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>\n", left - 6,
                       top + static_cast<double>(i * o.tile_q) * plot.y_scale + 4,
                       o.kv_len - o.q_len + i * o.tile_q);
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">key position k</text>\n",
                     left + plot.width / 2, top - 24);
  if (plot.height >= 100)
    svg += fmt::format(
        "<text transform=\"translate(14 {:.1f}) rotate(-90)\" text-anchor=\"middle\">query position "
        "q</text>\n",
        top + plot.height / 2);
  return svg;
}

std::string key(const Plot& plot, const Mosaic& mosaic) {
  struct Entry {
    std::string_view tile, element, text;
    std::int64_t tiles;
  };
  const std::array entries{Entry{"empty", "", "empty: skipped", mosaic.tiles.empty},
                           Entry{"partial", "visible", "partial: masked", mosaic.tiles.partial},
                           Entry{"full", "", "full: no mask", mosaic.tiles.full}};
  const double y = top + plot.height + 14;
  double x = left;
  std::string svg;
  for (const Entry& entry : entries) {
    svg += fmt::format("<rect class=\"{}\" x=\"{}\" y=\"{:.1f}\" width=\"14\" height=\"14\"/>", entry.tile, x,
                       y);
    if (!entry.element.empty())
      svg += fmt::format("<path class=\"{}\" d=\"M{} {:.1f}v14h14z\"/>", entry.element, x, y);
    svg +=
        fmt::format("<text x=\"{}\" y=\"{:.1f}\">{} {}</text>\n", x + 20, y + 11.5, entry.tiles, entry.text);
    x += 192;
  }
  return svg;
}

}  // namespace

std::string draw_svg(const std::string& title, const PictureOptions& o, const Mosaic& mosaic,
                     const Cells& cells) {
  constexpr std::size_t longest_title = 76;
  const Plot plot(o);
  const std::string heading = title.size() <= longest_title ? title : title.substr(0, longest_title) + "...";
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chorale-mask\" viewBox=\"0 0 {0:g} {1:g}\" "
      "width=\"{0:g}\" height=\"{1:g}\" "
      "role=\"img\">\n<title>{2}</title>\n<style>{3}</style>\n<rect class=\"panel\" width=\"{0:g}\" "
      "height=\"{1:g}\" rx=\"8\"/>\n"
      "<text class=\"title\" x=\"{4}\" y=\"28\">{5}</text>\n",
      plot.page_width(), plot.page_height(), escape(title), style, left, escape(heading));
  svg += axes(plot, o, mosaic);

  // Positions are the coordinates inside this group. Full tiles come last: they cover what cells that lie on
  // their border draw into them.
  svg +=
      fmt::format("<g transform=\"translate({} {}) scale({:.6g} {:.6g})\" shape-rendering=\"crispEdges\">\n",
                  left, top, plot.x_scale, plot.y_scale);
  svg += fmt::format("<rect class=\"empty\" width=\"{}\" height=\"{}\"/>\n", o.kv_len, o.q_len);
  svg += fmt::format("<path class=\"partial\" d=\"{}\"/>\n", tiles_of(Coverage::partial, o, mosaic));
  for (int strength = 1; strength <= strengths; ++strength)
    if (const std::string path = elements_of(strength, o, cells); !path.empty())
      svg += fmt::format("<path class=\"visible\" fill-opacity=\"{:g}\" d=\"{}\"/>\n",
                         static_cast<double>(strength) / strengths, path);
  svg += fmt::format("<path class=\"full\" d=\"{}\"/>\n</g>\n", tiles_of(Coverage::full, o, mosaic));

  svg += fmt::format("<path class=\"lines\" d=\"{}\"/>\n", grid_lines(plot, o, mosaic));
  svg += fmt::format("<rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{:.2f}\" height=\"{:.2f}\"/>\n", left,
                     top, plot.width, plot.height);
  return svg + key(plot, mosaic) + "</svg>\n";
}

}  // namespace chorale
