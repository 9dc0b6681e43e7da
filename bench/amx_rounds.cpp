#include "bench/amx_rounds.h"

#include <fmt/format.h>
#include <sched.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "bench/peaks.h"
#include "simd/dot_tiles.h"

namespace chorale::bench {
namespace {

constexpr int rounds = 300, products = 4096, cycles_of_a_product = 16;

double seconds(const std::function<void()>& run, int rows_of_last_two = 16) {
  const simd::DotScope tiles(simd::DotLevel::amx, rows_of_last_two);
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void products_of_registers() { amx_products(products / 4); }

std::vector<double> measure(const AmxPiece& piece) {
  constexpr double undisturbed = 1.03;
  std::vector<double> cycles;
  seconds(piece.run, piece.rows_of_last_two);  // its operands come to where they stay
  for (int round = 0; round < rounds; ++round) {
    const double before = seconds(products_of_registers), time = seconds(piece.run, piece.rows_of_last_two),
                 after = seconds(products_of_registers);
    if (std::max(before, after) < undisturbed * std::min(before, after))
      cycles.push_back(time / piece.units * products * cycles_of_a_product / ((before + after) / 2));
  }
  std::sort(cycles.begin(), cycles.end());
  return cycles;
}

}  // namespace

int measure_amx_pieces(const std::string& program, const std::string& description, int argc, char** argv,
                       const std::function<std::vector<AmxPiece>()>& make) {
  CLI::App app(description);
  int processor = 2;
  app.add_option("processor", processor, "that it runs on")->check(CLI::Range(0, CPU_SETSIZE - 1));
  CLI11_PARSE(app, argc, argv);
  if (simd::processor_dot_level() != simd::DotLevel::amx) {
    fmt::print(stderr, "{}: this processor has no AMX, or Linux does not give it\n", program);
    return 1;
  }
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(processor, &only);
  if (sched_setaffinity(0, sizeof only, &only) != 0) {
    fmt::print(stderr, "{}: processor {}: this machine has no such one\n", program, processor);
    return 2;
  }
  const double rate = 1 / (seconds(products_of_registers) / products / cycles_of_a_product);
  fmt::print(
      "processor {}, {:.2f} GHz; cycles, of which a product on registers takes {}: median (tenth to "
      "ninetieth per cent), rounds\n",
      processor, rate * 1e-9, cycles_of_a_product);
  for (const AmxPiece& piece : make()) {
    const std::vector<double> cycles = measure(piece);
    const std::size_t n = cycles.size();
    if (n < rounds / 10)
      fmt::print("{:<58} disturbed\n", piece.name);
    else
      fmt::print("{:<58} {:8.1f} ({:.1f} to {:.1f}), {}\n", piece.name, cycles[n / 2], cycles[n / 10],
                 cycles[n * 9 / 10], n);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace chorale::bench
