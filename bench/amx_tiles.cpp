// What products of AMX tiles cost with their loads and stores, from each cache level: shares of the rate of a
// loop on registers, which runs before and after each line. Rounds in which that loop itself was disturbed
// (by a neighbour on the core's other thread, say) do not count.
//     amx_tiles [PROCESSOR]     pinned to that one; 2 if nothing is said
#include <fmt/format.h>
#include <immintrin.h>
#include <sched.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "simd/dot_tiles.h"

namespace chorale::bench {
namespace {

constexpr std::size_t tile = 1024, kilobyte = 1024;
constexpr int rounds = 400, blocks = 512, products = 4 * blocks;  // of a run: a block is four products

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
void products_of_registers() {
  clear();
  for (int i = 0; i < blocks; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
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

double nanoseconds(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}
double peak() { return std::min(nanoseconds(products_of_registers), nanoseconds(products_of_registers)); }

struct Line {
  std::string name;
  std::function<void()> run;
  std::vector<double> shares;
};

void measure(std::vector<Line>& lines) {
  constexpr double undisturbed = 1.1;
  for (int round = 0; round < rounds; ++round)
    for (Line& line : lines) {
      line.run();  // its operands come to where they stay
      const double before = peak(), time = nanoseconds(line.run), after = peak();
      if (std::max(before, after) < undisturbed * std::min(before, after))
        line.shares.push_back((before + after) / 2 / time);
    }
}

int run(int argc, char** argv) {
  CLI::App app("what products of AMX tiles cost with operands from each cache level");
  int processor = 2;
  app.add_option("processor", processor, "that it runs on")->check(CLI::Range(0, CPU_SETSIZE - 1));
  CLI11_PARSE(app, argc, argv);
  if (simd::processor_dot_level() != simd::DotLevel::amx) {
    fmt::print(stderr, "amx_tiles: this processor has no AMX, or Linux does not give it\n");
    return 1;
  }
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(processor, &only);
  if (sched_setaffinity(0, sizeof only, &only) != 0) {
    fmt::print(stderr, "amx_tiles: processor {}: this machine has no such one\n", processor);
    return 2;
  }
  const simd::DotScope tiles(simd::DotLevel::amx);

  constexpr std::size_t large = 32 << 20, all = 2 * large;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(2 << 20, all));
  std::memset(memory, 0, all);
  const auto at = [&](std::size_t offset_kilobytes, std::size_t kilobytes) {
    return Stream{memory + offset_kilobytes * kilobyte, kilobytes * kilobyte};
  };
  const Stream a = at(0, 8), b = at(8, 8), b16 = at(8, 16), b32 = at(8, 32), b64 = at(64, 64),
               second = at(1024, 512), third{memory + large, large};
  std::vector<Line> lines = {
      {"registers alone", products_of_registers, {}},
      {"2 x 2, both sides from L1", [=] { products_2_by_2(a, b); }, {}},
      {"1 x 4, both from L1", [=] { products_1_by_4(a, b16); }, {}},
      {"2 x 2, left from L2 (512 KiB), right 8 KiB", [=] { products_2_by_2(second, b); }, {}},
      {"2 x 2, left from L2, right 16 KiB", [=] { products_2_by_2(second, b16); }, {}},
      {"2 x 2, left from L2, right 32 KiB", [=] { products_2_by_2(second, b32); }, {}},
      {"2 x 2, left from L2, right 64 KiB", [=] { products_2_by_2(second, b64); }, {}},
      {"1 x 4, left from L2, right 16 KiB", [=] { products_1_by_4(second, b16); }, {}},
      {"1 x 4, left from L2, right 32 KiB", [=] { products_1_by_4(second, b32); }, {}},
      {"1 x 4, left from L2, right 64 KiB", [=] { products_1_by_4(second, b64); }, {}},
      {"2 x 2, left from L3 (32 MiB), right 8 KiB", [=] { products_2_by_2(third, b); }, {}},
      {"2 x 2 from L1, stored every 16 products", [=] { products_and_stores(a, b, b64, 4); }, {}},
      {"2 x 2 from L1, stored every 64", [=] { products_and_stores(a, b, b64, 16); }, {}},
  };
  measure(lines);
  for (Line& line : lines) {
    std::sort(line.shares.begin(), line.shares.end());
    const std::size_t n = line.shares.size();
    if (n < rounds / 10)
      fmt::print("{:<45} disturbed\n", line.name);
    else
      fmt::print("{:<45} {:5.1f}% of the products on registers ({:.1f} to {:.1f}), {} rounds\n", line.name,
                 100 * line.shares[n / 2], 100 * line.shares[n / 10], 100 * line.shares[n * 9 / 10], n);
  }
  fmt::print("{} products a run, processor {}\n", products, processor);
  std::free(memory);
  return 0;
}

}  // namespace
}  // namespace chorale::bench

int main(int argc, char** argv) { return chorale::bench::run(argc, argv); }
