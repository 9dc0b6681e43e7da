// Mosaic: a mask surveyed tile by tile, and what of it falls into the cells of a picture.
#pragma once

#include <vector>

#include "mask/picture.h"
#include "mask/program.h"

namespace chorale {

constexpr std::int64_t ceil_divide(std::int64_t x, std::int64_t y) { return (x - 1) / y + 1; }  // of x >= 1

// A grid of cells laid over the (query row, key) plane.
class Cells {
 public:
  // Cell (i, j) covers the rows r with r * rows / height == i, and the keys likewise.
  Cells(std::int64_t rows, std::int64_t columns, std::int64_t height, std::int64_t width);

  struct Cell {
    std::int64_t pairs = 0, visible = 0;
    bool empty = false, partial = false, full = false;  // kinds of the tiles that it touches
  };
  // Keys [first, first + count) of one row lie in a tile of this kind; visible is null where the kind says
  // all.
  void add(std::int64_t row, std::int64_t first, std::int64_t count, Coverage kind,
           const std::uint8_t* visible);

  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  double cell_height() const { return static_cast<double>(height_) / static_cast<double>(rows_); }
  double cell_width() const { return static_cast<double>(width_) / static_cast<double>(columns_); }
  const Cell& at(std::int64_t row, std::int64_t column) const {
    return cells_[static_cast<std::size_t>(row * columns_ + column)];
  }

 private:
  std::int64_t rows_, columns_, height_, width_;
  std::vector<Cell> cells_;
};

// Everything that a picture shows.
struct Mosaic {
  std::int64_t tile_rows, tile_columns;
  std::vector<Coverage> kinds;  // [tile_rows, tile_columns]
  MaskPicture::Tiles tiles, pairs;
  std::int64_t visible = 0;

  Coverage kind(std::int64_t row, std::int64_t column) const {
    return kinds[static_cast<std::size_t>(row * tile_columns + column)];
  }
};

// Visits every tile once, filling the cells of every grid.
Mosaic survey(const Program& mask, const PictureOptions& options, std::vector<Cells*> grids);

std::string draw_svg(const std::string& title, const PictureOptions& options, const Mosaic& mosaic,
                     const Cells& elements);
std::string draw_terminal(const PictureOptions& options, const Mosaic& mosaic, const Cells& cells);

}  // namespace chorale
