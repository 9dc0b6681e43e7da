// Times of short pieces of work on AMX, in nanoseconds and in products: a loop of products of ordinary
// numbers on registers runs before and after each piece. A processor may slow tile products alone, to a
// third, whatever its clock (docs/cpu_attention.md), so neither number says enough without the other. Where
// the loop was not equally fast before and after, the round does not count.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace chorale::bench {

struct AmxPiece {
  std::string name;
  double units;  // of which a run does so many: times are of one
  std::function<void()> run;
  int rows_of_last_two = 16;  // simd::DotScope's
};

// A program that measures what make() returns, pinned to the processor that its argument names, and prints
// medians, the tenth and the ninetieth per cent. Returns its exit status: 1 without AMX, 2 where there is no
// such processor.
int measure_amx_pieces(const std::string& program, const std::string& description, int argc, char** argv,
                       const std::function<std::vector<AmxPiece>()>& make);

}  // namespace chorale::bench
