// main() of test programs that also run at each lower level of arithmetic (chorale_test's EVERY_LEVEL). Such
// a run is told its level in CHORALE_TEST_LEVEL. It is skipped, in the word that CTest looks for, where the
// processor lacks the level, and where it is the processor's best: the tests' plain runs have that one.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "simd/levels.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* level = std::getenv("CHORALE_TEST_LEVEL");
  if (level == nullptr) return RUN_ALL_TESTS();
  ::setenv("CHORALE_SIMD", level, 1);
  const std::string best = chorale::simd::processor_level();
  if (best == level || !chorale::simd::check_forced_level().is_ok()) {
    std::printf("[  SKIPPED ] level %s: the processor's best is %s\n", level, best.c_str());
    return 0;
  }
  return RUN_ALL_TESTS();
}
