// Config: the constants of one compiled kernel. The host puts the definitions of CHORALE_* before the sources
// (src/implementations/cuda/source.cpp); nothing else in this folder mentions them.
#pragma once

namespace chorale::kernels {

struct Config {
  static constexpr int head_dim = CHORALE_HEAD_DIM;     // of queries and keys: 64, 96, 128, 192, 256
  static constexpr int value_dim = CHORALE_VALUE_DIM;   // of values and outputs
  static constexpr int group = CHORALE_GROUP;           // query heads of a KV head
  static constexpr bool bfloat16 = CHORALE_BFLOAT16;    // else float16
  static constexpr bool fp8_cache = CHORALE_FP8_CACHE;  // keys and values are e4m3 with a scale per head
  static constexpr bool paged = CHORALE_PAGED;
  static constexpr int page_size = CHORALE_PAGE_SIZE;  // paged: a power of two from 1 to 256
  static constexpr bool masked = CHORALE_MASKED;       // has a mask program
  static constexpr bool scored = CHORALE_SCORED;       // has a score program
  static constexpr bool sinks = CHORALE_SINKS;

  static constexpr int tile = CHORALE_TILE;            // T: keys of a step
  static constexpr int chunk = CHORALE_CHUNK;          // C: keys whose partial state starts from nothing
  static constexpr int positions = CHORALE_POSITIONS;  // query positions of a row block
  static constexpr int cluster = CHORALE_CLUSTER;      // decode: blocks of threads that share an item
  static constexpr int rows = positions * group;       // rows in use of a row block

  // compute-sanitizer does not see __syncwarp(), of which nothing is left in the code of a warp that has not
  // diverged: lane 0's "all have read this" looks like a race. To look for races, each lane arrives for
  // itself.
#ifdef CHORALE_LANES_ARRIVE
  static constexpr bool lanes_arrive = true;
#else
  static constexpr bool lanes_arrive = false;
#endif
  static constexpr int warp_arrivals = lanes_arrive ? 32 : 1;
};

}  // namespace chorale::kernels
