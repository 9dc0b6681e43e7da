// Pictures of a mask: which tiles are empty, partial and full, for a terminal and as SVG.
#pragma once

#include <cstdint>
#include <string>

#include "chorale/mask.h"

namespace chorale {

struct PictureOptions {
  std::int64_t q_len = 0, kv_len = 0;     // at least 1 each; at most 2^28 pairs
  std::int64_t tile_q = 64, tile_k = 64;  // at least 1 each; at most 2^20 tiles
  std::int64_t b = 0, h = 0;              // the sequence and the head to draw
  int columns = 80;                       // of the terminal, 20 to 1000
};

struct MaskPicture {
  struct Tiles {
    std::int64_t empty = 0, partial = 0, full = 0;
    std::int64_t total() const { return empty + partial + full; }
  };
  Tiles tiles;
  Tiles pairs;               // query-key pairs by the kind of tile they lie in
  std::int64_t visible = 0;  // pairs that the mask shows
  std::string svg;           // self-contained
  std::string terminal;      // Unicode blocks with axes and a key, lines ending in newlines
  std::string summary;       // tiles, visible pairs and skipped work, in three lines
};

// Fails where sizes are out of the limits above or a table would be read outside.
Result<MaskPicture> draw_mask(const Mask& mask, const PictureOptions& options);
Result<MaskPicture> draw_mask(const Mask& mask, std::int64_t q_len, std::int64_t kv_len, std::int64_t tile);

}  // namespace chorale
