#include "rl/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace chorale {
namespace {

// In units of the picture; the plot is what the margins leave.
constexpr double width = 640, height = 240, left = 58, right = 14, top = 12, bottom = 34;

struct Axis {
  double first, last;  // values at its two ends
  double from, to;     // where these lie in the picture
  double step;         // between ticks

  double place(double value) const { return from + (value - first) / (last - first) * (to - from); }
};

// The axis grows to whole ticks of 1, 2 or 5 times a power of ten, about `ticks` of them.
Axis make_axis(double first, double last, double from, double to, int ticks) {
  if (!(last > first)) last = first + 1;
  const double raw = (last - first) / ticks;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double factor = raw / power;
  const double step = power * (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10);
  return {std::floor(first / step) * step, std::ceil(last / step) * step, from, to, step};
}

std::string tick_text(double value, double step) {
  if (std::abs(value) < step / 2) return "0";
  return fmt::format("{:.{}g}", value, std::abs(value) >= 1000 ? 6 : 4);
}

std::string draw_grid(const Axis& x, const Axis& y) {
  std::string svg;
  for (int i = 0; y.first + i * y.step <= y.last + y.step / 2; ++i) {
    const double value = y.first + i * y.step, place = y.place(value);
    svg += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>",
                       x.from, x.to, place, place);
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", x.from - 7, place + 4,
                       tick_text(value, y.step));
  }
  for (int i = 0; x.first + i * x.step <= x.last + x.step / 2; ++i) {
    const double value = x.first + i * x.step;
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", x.place(value),
                       y.from + 17, tick_text(value, x.step));
  }
  return svg;
}

std::string draw_line(const ChartLine& line, const Axis& x, const Axis& y) {
  std::string path, dots;
  for (const auto& [x_value, y_value] : line.points) {
    if (!std::isfinite(y_value)) continue;
    const double x_place = x.place(x_value), y_place = y.place(y_value);
    path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : " L", x_place, y_place);
    if (line.dots)
      dots += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"var(--series-{})\"><title>{} at {}: "
          "{:.6g}</title></circle>",
          x_place, y_place, line.colour, escape_html(line.name), x_value, y_value);
  }
  return fmt::format("<path class=\"line\" stroke=\"var(--series-{})\" d=\"{}\"/>{}", line.colour, path,
                     dots);
}

std::string draw_legend(const std::vector<ChartLine>& lines) {
  if (lines.size() < 2) return "";
  std::string html;
  for (const ChartLine& line : lines)
    html += fmt::format("<span class=\"key\"><i style=\"background:var(--series-{})\"></i>{}</span>",
                        line.colour, escape_html(line.name));
  return html;
}

}  // namespace

std::string draw(const Chart& chart) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  double least_x = infinity, most_x = -infinity, least_y = chart.least_y, most_y = chart.most_y;
  for (const ChartLine& line : chart.lines)
    for (const auto& [x, y] : line.points) {
      least_x = std::min(least_x, x), most_x = std::max(most_x, x);
      if (std::isfinite(y)) least_y = std::min(least_y, y), most_y = std::max(most_y, y);
    }
  if (least_x > most_x) least_x = most_x = 0;  // no point at all

  const Axis x = make_axis(least_x, most_x, left, width - right, 8);
  const Axis y = make_axis(least_y, most_y, height - bottom, top, 5);
  std::string svg = draw_grid(x, y);
  for (const ChartLine& line : chart.lines) svg += draw_line(line, x, y);
  svg += fmt::format("<text class=\"axis\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", x.to,
                     height - 3, escape_html(chart.x_label));
  return fmt::format(
      "<figure><figcaption>{0}{1}</figcaption>"
      "<svg viewBox=\"0 0 {2} {3}\" role=\"img\" aria-label=\"{0}\">{4}</svg></figure>\n",
      escape_html(chart.title), draw_legend(chart.lines), width, height, svg);
}

std::string escape_html(std::string_view text) {
  std::string escaped;
  for (const char character : text) {
    switch (character) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += character;
    }
  }
  return escaped;
}

}  // namespace chorale
