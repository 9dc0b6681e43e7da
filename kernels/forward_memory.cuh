// What the warpgroups of the forward kernel share, and the barriers by which they hand it over.
#pragma once

#include "config.cuh"
#include "params.h"
#include "ptx.cuh"
#include "schedule.cuh"

namespace chorale::kernels {

constexpr int forward_threads = 384;
constexpr int forward_rows = 128;  // of a row block, in two warpgroups
constexpr int bring_registers = 24, consume_registers = 240;
constexpr int scrub_threads = 32;
constexpr int consumer_arrivals = 8 * Config::warp_arrivals;  // each warp's

// Tiles are blocks of 64 columns: 128 bytes a row, swizzled.
constexpr int block_columns = 64, block_row_bytes = 128;
constexpr int key_blocks = (Config::head_dim + 63) / 64, value_blocks = (Config::value_dim + 63) / 64;
constexpr int key_tile_bytes = Config::tile * block_row_bytes * key_blocks;
constexpr int value_tile_bytes = Config::tile * block_row_bytes * value_blocks;
constexpr int staged_blocks = value_blocks < 2 ? 1 : 2;  // of outputs, at a time
constexpr int staged_bytes = 64 * block_row_bytes;       // of 64 columns of a warpgroup's rows
constexpr int query_bytes = forward_rows * block_row_bytes * key_blocks;

// A position in a ring of buffers: which one, and the parity of its barriers' phase.
template <int size>
struct Turn {
  int index = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    const bool wraps = index == size - 1;
    index = wraps ? 0 : index + 1;
    parity ^= wraps;
  }
};

// A tile on its way to the consumers.
struct Step {
  static constexpr int partial = 1, last = 2, chunk_end = 4, chunk_start = 8, careful = 16,
                       past_end = 32,  // of the sequence: not all of its keys exist
      pause = 64, none = 128;          // no tile: as Item::sequence
  int flags;
  int tile;
};

// What the warp that makes values safe must know of a tile.
struct ValueStep {
  int live;      // keys before the sequence's end; -1: no more values
  bool careful;  // some rows do not see some of them, and those may not be finite
};
// The keys of a tile that have values which are not finite, a bit each.
struct KeySet {
  u32 bits[Config::tile / 32];
  u32 any;
};

struct ForwardMemory {
  static constexpr int items = 4, queries = query_bytes > 48 << 10 ? 1 : 2, keys = 2,
                       values = 2;  // sizes of rings

  unsigned char query[queries][query_bytes];
  unsigned char key[keys][key_tile_bytes];
  unsigned char value[values][value_tile_bytes];
  // Of a warpgroup: staged outputs, whose swizzle counts on the alignment, and before an item's end part of
  // its Total.
  alignas(1024) unsigned char out[2][staged_blocks * staged_bytes];

  Item item[items];
  bool again[items];             // an item that gave NaN: it is done once more, carefully
  Step step[keys];               // what key[i] is
  ValueStep value_step[values];  // what value[i] is
  KeySet infinite[values];       // of those of value[i] that are taken carefully: cleared there

  // full: its bytes have arrived. free: its readers are done.
  u64 item_known[items], item_free[items];
  u64 keys_brought;  // of an item: it is time for the next
  u64 query_full[queries], query_free[queries];
  u64 key_full[keys], key_free[keys];
  u64 value_full[values], value_safe[values], value_free[values];  // safe: scrubbed

  u32 zero;  // is 0, which the compiler does not know (ordered_after)

  __device__ void initialise() {
    zero = 0;
    for (int i = 0; i < items; ++i) {
      again[i] = false;
      mbarrier_init(&item_known[i], 1);
      // And those that bring keys and values.
      mbarrier_init(&item_free[i], consumer_arrivals + 2 * Config::warp_arrivals);
    }
    for (int i = 0; i < queries; ++i) {
      mbarrier_init(&query_full[i], 1);
      mbarrier_init(&query_free[i], consumer_arrivals);
    }
    mbarrier_init(&keys_brought, 1);
    for (int i = 0; i < keys; ++i) {
      mbarrier_init(&key_full[i], 1);
      mbarrier_init(&key_free[i], consumer_arrivals);
    }
    for (int i = 0; i < values; ++i) {
      mbarrier_init(&value_full[i], 1);
      mbarrier_init(&value_safe[i], scrub_threads);
      mbarrier_init(&value_free[i], consumer_arrivals);
    }
    mbarrier_init_fence();
  }
};
using ItemTurn = Turn<ForwardMemory::items>;
// Queries stand in a ring that items go around a whole number of times.
static_assert(ForwardMemory::items % (2 * ForwardMemory::queries) == 0);
struct QueryTurn {
  int index;
  u32 parity;
  __device__ __forceinline__ explicit QueryTurn(const ItemTurn& item)
      : index(item.index % ForwardMemory::queries), parity(item.index / ForwardMemory::queries % 2) {}
};
using KeyTurn = Turn<ForwardMemory::keys>;
using ValueTurn = Turn<ForwardMemory::values>;

}  // namespace chorale::kernels
