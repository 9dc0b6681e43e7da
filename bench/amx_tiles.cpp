// What products of AMX tiles cost with their loads and stores, from each cache level: times of a product.
//     amx_tiles [PROCESSOR]     pinned to that one; 2 if nothing is said
#include <immintrin.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "bench/amx_rounds.h"

namespace chorale::bench {
namespace {

constexpr std::size_t tile = 1024, kilobyte = 1024;
constexpr int blocks = 512, products = 4 * blocks;  // of a run: a block is four products

// Tiles that are read one after another, again and again.
struct Stream {
  unsigned char* start;
  std::size_t bytes;
  std::size_t at = 0;
  const unsigned char* next(std::size_t tiles) {
    const unsigned char* here = start + at;
    at = at + tiles * tile < bytes ? at + tiles * tile : 0;
    return here;
  }
};

void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
// Two tiles of each side give four products.
void block_of_2_by_2(const unsigned char* left, const unsigned char* right) {
  _tile_loadd(4, left, 64);
  _tile_loadd(6, right, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right + tile, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, left + tile, 64);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}
void products_2_by_2(Stream left, Stream right) {
  clear();
  for (int i = 0; i < blocks; ++i) block_of_2_by_2(left.next(2), right.next(2));
}
// One tile of the left side, four of the right.
void products_1_by_4(Stream left, Stream right) {
  clear();
  for (int i = 0; i < blocks; ++i) {
    const unsigned char *one = left.next(1), *four = right.next(4);
    _tile_loadd(4, one, 64);
    _tile_loadd(5, four, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, four + tile, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, four + 2 * tile, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, four + 3 * tile, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
}
// The four sums are stored after every `every` blocks, and begin again.
void products_and_stores(Stream left, Stream right, Stream sums, int every) {
  clear();
  for (int i = 1; i <= blocks; ++i) {
    block_of_2_by_2(left.next(2), right.next(2));
    if (i % every != 0) continue;
    auto* to = const_cast<unsigned char*>(sums.next(4));
    _tile_stored(0, to, 64);
    _tile_stored(1, to + tile, 64);
    _tile_stored(2, to + 2 * tile, 64);
    _tile_stored(3, to + 3 * tile, 64);
    clear();
  }
}

std::vector<AmxPiece> pieces() {
  constexpr std::size_t large = 32 << 20, all = 2 * large;
  const std::shared_ptr<unsigned char> memory(static_cast<unsigned char*>(std::aligned_alloc(2 << 20, all)),
                                              std::free);
  std::memset(memory.get(), 0, all);
  const auto at = [&](std::size_t offset_kilobytes, std::size_t kilobytes) {
    return Stream{memory.get() + offset_kilobytes * kilobyte, kilobytes * kilobyte};
  };
  const Stream a = at(0, 8), b = at(8, 8), b16 = at(8, 16), b32 = at(8, 32), b64 = at(64, 64),
               second = at(1024, 512), third = at(large / kilobyte, large / kilobyte);
  std::vector<AmxPiece> list;
  const auto add = [&](const char* name, auto run) {
    list.push_back({name, products, [run, memory] { run(); }});  // which keeps the memory
  };
  add("2 x 2, both sides from L1", [=] { products_2_by_2(a, b); });
  add("1 x 4, both from L1", [=] { products_1_by_4(a, b16); });
  add("2 x 2, left from L2 (512 KiB), right 8 KiB", [=] { products_2_by_2(second, b); });
  add("2 x 2, left from L2, right 16 KiB", [=] { products_2_by_2(second, b16); });
  add("2 x 2, left from L2, right 32 KiB", [=] { products_2_by_2(second, b32); });
  add("2 x 2, left from L2, right 64 KiB", [=] { products_2_by_2(second, b64); });
  add("1 x 4, left from L2, right 16 KiB", [=] { products_1_by_4(second, b16); });
  add("1 x 4, left from L2, right 32 KiB", [=] { products_1_by_4(second, b32); });
  add("1 x 4, left from L2, right 64 KiB", [=] { products_1_by_4(second, b64); });
  add("2 x 2, left from L3 (32 MiB), right 8 KiB", [=] { products_2_by_2(third, b); });
  add("2 x 2 from L1, stored every 16 products", [=] { products_and_stores(a, b, b64, 4); });
  add("2 x 2 from L1, stored every 64", [=] { products_and_stores(a, b, b64, 16); });
  return list;
}

}  // namespace
}  // namespace chorale::bench

int main(int argc, char** argv) {
  return chorale::bench::measure_amx_pieces(
      "amx_tiles", "what products of AMX tiles cost with operands from each cache level", argc, argv,
      chorale::bench::pieces);
}
