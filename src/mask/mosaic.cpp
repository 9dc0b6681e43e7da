#include "mask/mosaic.h"

#include <algorithm>

namespace chorale {

Cells::Cells(std::int64_t rows, std::int64_t columns, std::int64_t height, std::int64_t width)
    : rows_(rows),
      columns_(columns),
      height_(height),
      width_(width),
      cells_(static_cast<std::size_t>(rows * columns)) {}

void Cells::add(std::int64_t row, std::int64_t first, std::int64_t count, Coverage kind,
                const std::uint8_t* visible) {
  Cell* const line = &cells_[static_cast<std::size_t>(row * rows_ / height_ * columns_)];
  for (std::int64_t k = first; k < first + count;) {
    const std::int64_t column = k * columns_ / width_;
    const std::int64_t end = std::min(ceil_divide((column + 1) * width_, columns_), first + count);
    Cell& cell = line[column];
    cell.pairs += end - k;
    if (visible != nullptr)
      cell.visible += std::count(visible + (k - first), visible + (end - first), 1);
    else if (kind == Coverage::full)
      cell.visible += end - k;
    cell.empty |= kind == Coverage::empty;
    cell.partial |= kind == Coverage::partial;
    cell.full |= kind == Coverage::full;
    k = end;
  }
}

Mosaic survey(const Program& mask, const PictureOptions& o, std::vector<Cells*> grids) {
  Mosaic mosaic{.tile_rows = ceil_divide(o.q_len, o.tile_q),
                .tile_columns = ceil_divide(o.kv_len, o.tile_k),
                .kinds = {},
                .tiles = {},
                .pairs = {}};
  RowEvaluator evaluator(mask);
  std::vector<std::uint8_t> visible(static_cast<std::size_t>(std::min(o.tile_k, o.kv_len)));
  const std::int64_t first_q = o.kv_len - o.q_len;  // the last query stands at the last key
  for (std::int64_t row = 0; row < o.q_len; row += o.tile_q) {
    const std::int64_t height = std::min(o.tile_q, o.q_len - row);
    for (std::int64_t k = 0; k < o.kv_len; k += o.tile_k) {
      const std::int64_t width = std::min(o.tile_k, o.kv_len - k);
      const Box box{{o.b, o.b}, {o.h, o.h}, {first_q + row, first_q + row + height - 1}, {k, k + width - 1}};
      const Coverage kind = classify(mask, box);
      mosaic.kinds.push_back(kind);
      const auto member = kind == Coverage::empty  ? &MaskPicture::Tiles::empty
                          : kind == Coverage::full ? &MaskPicture::Tiles::full
                                                   : &MaskPicture::Tiles::partial;
      mosaic.tiles.*member += 1;
      mosaic.pairs.*member += height * width;
      if (kind == Coverage::full) mosaic.visible += height * width;
      for (std::int64_t r = row; r < row + height; ++r) {
        if (kind == Coverage::partial) {
          evaluator.mask({o.b, o.h, first_q + r, k}, width, visible.data());
          mosaic.visible += std::count(visible.begin(), visible.begin() + width, 1);
        }
        for (Cells* grid : grids)
          grid->add(r, k, width, kind, kind == Coverage::partial ? visible.data() : nullptr);
      }
    }
  }
  return mosaic;
}

}  // namespace chorale
