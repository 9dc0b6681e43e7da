#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace chorale {
namespace {

TEST(ParallelFor, VisitsEveryIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    std::vector<int> visits(1000);
    parallel_for(1000, threads, [&](std::int64_t i, int worker) {
      EXPECT_LT(worker, threads);
      ++visits[static_cast<std::size_t>(i)];
    });
    for (const int count : visits) EXPECT_EQ(count, 1);
  }
  parallel_for(0, 4, [](std::int64_t, int) { FAIL() << "nothing to visit"; });
}

TEST(ParallelFor, RethrowsAfterAllHaveStopped) {
  EXPECT_THROW(parallel_for(100, 2,
                            [](std::int64_t i, int) {
                              if (i == 7) throw std::runtime_error("seven");
                            }),
               std::runtime_error);
}

TEST(ParallelFor, NestsAndRunsFromSeveralThreads) {
  std::atomic<int> visits{0};
  auto work = [&] {
    parallel_for(10, 2, [&](std::int64_t, int) {
      parallel_for(10, 2, [&](std::int64_t, int worker) {
        EXPECT_EQ(worker, 0);
        ++visits;
      });
    });
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(visits, 200);
}

}  // namespace
}  // namespace chorale
