// Line charts as SVG text, for reports. Colours come from CSS variables of the page, so they follow its
// theme.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace chorale {

struct ChartLine {
  std::string name;
  std::vector<std::pair<double, double>> points;  // ascending in x; those that are not finite are left out
  int colour = 0;                                 // --series-0, --series-1, ... of the page
  bool dots = false;                              // few points: mark each, with its value as a tooltip
};

struct Chart {
  std::string title, x_label;
  double least_y = 0, most_y = 0;  // the axis covers at least this much
  std::vector<ChartLine> lines = {};
};

// One <figure> with a caption, a legend if there are several lines, and the picture, which scales to the
// page's width.
std::string draw(const Chart& chart);

// Text as it must stand in HTML.
std::string escape_html(std::string_view text);

}  // namespace chorale
