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

constexpr int rounds = 300, products = 4096;

double seconds(const std::function<void()>& run, int rows_of_last_two = 16) {
  const simd::DotScope tiles(simd::DotLevel::amx, rows_of_last_two);
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void products_of_registers() { amx_products(products / 4); }

struct Round {
  double piece, product;  // seconds of one
};

std::vector<Round> measure(const AmxPiece& piece) {
  constexpr double undisturbed = 1.03;
  std::vector<Round> all;
  seconds(piece.run, piece.rows_of_last_two);  // its operands come to where they stay
  for (int round = 0; round < rounds; ++round) {
    const double before = seconds(products_of_registers), time = seconds(piece.run, piece.rows_of_last_two),
                 after = seconds(products_of_registers);
    if (std::max(before, after) < undisturbed * std::min(before, after))
      all.push_back({time / piece.units, (before + after) / 2 / products});
  }
  return all;
}

// The median, or another part, of what `of` takes from each round.
template <class Of>
double part(std::vector<Round> all, double which, Of of) {
  const auto at = all.begin() + static_cast<std::ptrdiff_t>(which * static_cast<double>(all.size()));
  std::nth_element(all.begin(), at, all.end(), [&](const Round& x, const Round& y) { return of(x) < of(y); });
  return of(*at);
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
  fmt::print("processor {}; medians (tenth to ninetieth per cent) of so many rounds\n", processor);
  fmt::print("{:<56} {:>24} {:>12} {:>9} {:>6}\n", "", "ns", "a product ns", "products", "rounds");
  for (const AmxPiece& piece : make()) {
    const std::vector<Round> all = measure(piece);
    if (all.size() < rounds / 10) {
      fmt::print("{:<56} disturbed\n", piece.name);
      continue;
    }
    const auto nanoseconds = [](const Round& x) { return x.piece * 1e9; };
    const auto product = [](const Round& x) { return x.product * 1e9; };
    const auto in_products = [](const Round& x) { return x.piece / x.product; };
    fmt::print("{:<56} {:>8.1f} ({:.1f} to {:.1f}) {:>12.2f} {:>9.2f} {:>6}\n", piece.name,
               part(all, 0.5, nanoseconds), part(all, 0.1, nanoseconds), part(all, 0.9, nanoseconds),
               part(all, 0.5, product), part(all, 0.5, in_products), all.size());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace chorale::bench
