// The emulation of clusters (emulation/), by a kernel made for it: what kernels may count on holds, and what
// they must not is seen.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "ptx.cuh"
#include "sanitized.h"

namespace emulation {
namespace {

using namespace chorale::kernels;

constexpr int threads = 64, turns = 5;

// What a block of the toy has in shared memory: a number of every thread of its cluster, which of its blocks
// have read theirs, the sum of the turn before, and the barriers that count the bytes of these.
template <int ranks>
struct Toy {
  u32 numbers[ranks][threads];
  u32 turns_read[ranks];
  float sum;
  u64 full, free, summed;

  static Toy& own() { return *reinterpret_cast<Toy*>(shared_memory()); }
};

// What to leave out.
enum class Mistake { none, no_first_sync, no_last_sync, no_free, too_few_bytes, too_many_bytes, bad_rank };

// In each turn every thread tells all threads of its cluster a number, and thread 0 of a block adds up what
// it was told; sums of block 0, which it gets from the last block, are its output.
template <int ranks>
void run_toy(Mistake mistake, float* out) {
  Toy<ranks>& own = Toy<ranks>::own();
  const int rank = cluster_rank(), number = static_cast<int>(threadIdx.x);
  const auto tell = [](auto& place, auto x, u64& barrier, int to) {
    remote_store(remote_address(shared_address(&place), to), x, remote_address(shared_address(&barrier), to));
  };
  if (number == 0) {
    for (u64* barrier : {&own.full, &own.free, &own.summed}) mbarrier_init(barrier, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (mistake != Mistake::no_first_sync) cluster_sync();
  const u32 wrong_bytes = mistake == Mistake::too_few_bytes ? -4 : mistake == Mistake::too_many_bytes ? 4 : 0;
  for (u32 turn = 0; turn < turns; ++turn) {
    if (turn > 0 && mistake != Mistake::no_free) mbarrier_wait(&own.free, (turn - 1) & 1);
    if (number == 0) {
      mbarrier_arrive_expect_bytes(&own.full, sizeof own.numbers + wrong_bytes);
      mbarrier_arrive_expect_bytes(&own.free, sizeof own.turns_read);
      if (rank == 0) mbarrier_arrive_expect_bytes(&own.summed, sizeof own.sum);
    }
    for (int to = 0; to < ranks; ++to)
      tell(own.numbers[rank][number], static_cast<u32>(number) * (turn + 1) + blockIdx.x, own.full,
           mistake == Mistake::bad_rank ? to + 1 : to);
    mbarrier_wait(&own.full, turn & 1);
    if (number == 0) {
      u32 sum = 0;
      for (const auto& numbers : own.numbers) sum = std::accumulate(numbers, numbers + threads, sum);
      if (rank == ranks - 1) tell(own.sum, static_cast<float>(sum), own.summed, 0);
      for (int to = 0; to < ranks; ++to) tell(own.turns_read[rank], turn, own.free, to);
      if (rank == 0) {
        mbarrier_wait(&own.summed, turn & 1);
        out[static_cast<int>(blockIdx.x) / ranks * turns + static_cast<int>(turn)] = own.sum;
      }
    }
    __syncthreads();
  }
  if (mistake != Mistake::no_last_sync) {
    mbarrier_wait(&own.free, (turns - 1) & 1);  // all that is sent here
    cluster_sync();
  }
}

// Whether all is as it should be, in one order.
template <int ranks>
std::string run(Mistake mistake, std::uint64_t seed) {
  constexpr int clusters = 3;
  std::vector<float> out(clusters * turns, -1.f), expected;
  for (int cluster = 0; cluster < clusters; ++cluster)
    for (int turn = 0; turn < turns; ++turn) {
      int sum = 0;
      for (int rank = 0; rank < ranks; ++rank)
        for (int i = 0; i < threads; ++i) sum += i * (turn + 1) + cluster * ranks + rank;
      expected.push_back(static_cast<float>(sum));
    }
  std::string problem =
      run_grid({threads, clusters * ranks, ranks}, seed, [&] { run_toy<ranks>(mistake, out.data()); });
  if (!problem.empty()) return problem;
  return out == expected ? "" : "wrong sums";
}

class EmulatedCluster : public ::testing::Test {
  void SetUp() override {
    if (chorale::sanitized) GTEST_SKIP() << "sanitizers do not follow fibers";
  }
};
constexpr std::uint64_t orders = 40;

TEST_F(EmulatedCluster, BlocksTellEachOther) {
  for (std::uint64_t seed = 0; seed < orders; ++seed) {
    EXPECT_EQ(run<1>(Mistake::none, seed), "") << seed;
    EXPECT_EQ(run<2>(Mistake::none, seed), "") << seed;
    EXPECT_EQ(run<4>(Mistake::none, seed), "") << seed;
  }
}

TEST_F(EmulatedCluster, MistakesAreSeen) {
  const auto found = [&](Mistake mistake) {
    for (std::uint64_t seed = 0; seed < orders; ++seed)
      if (!run<4>(mistake, seed).empty()) return true;
    return false;
  };
  EXPECT_TRUE(found(Mistake::no_first_sync));
  EXPECT_TRUE(found(Mistake::no_last_sync));
  EXPECT_TRUE(found(Mistake::no_free));
  EXPECT_TRUE(found(Mistake::too_few_bytes));
  EXPECT_TRUE(found(Mistake::too_many_bytes));
  EXPECT_TRUE(found(Mistake::bad_rank));
}

// Threads that have ended do not hold a cluster up.
TEST_F(EmulatedCluster, ThreadsThatEndAreNotWaitedFor) {
  for (std::uint64_t seed = 0; seed < orders; ++seed) {
    int after = 0;
    const std::string problem = run_grid({threads, 4, 2}, seed, [&] {
      if (threadIdx.x >= 32 && blockIdx.x % 2 == 0) return;
      for (int i = 0; i < 3; ++i) cluster_sync();
      ++after;
    });
    EXPECT_EQ(problem, "") << seed;
    EXPECT_EQ(after, 2 * (threads + 32)) << seed;
  }
}

}  // namespace
}  // namespace emulation
