// What the warps of the decode kernel share, and the barriers by which they hand it over.
//
// A cluster of blocks of threads takes one item after another: consecutive chunks of keys under one KV head.
// In each block eight warps consume, others bring. A chunk is taken in passes of eight tiles or less. First
// the tiles are dealt out to blocks and a warp multiplies the keys of one; then all agree on the rows'
// references, and tell each other probabilities; then the columns of values are dealt out, and each block
// multiplies its own of all tiles.
#pragma once

#include "config.cuh"
#include "params.h"
#include "ptx.cuh"

namespace chorale::kernels {

constexpr int consumers = 8;  // warps
constexpr int consumer_threads = 32 * consumers, decode_threads = consumer_threads + 128;

// Rows are taken in groups of 8, the narrow side of a matrix instruction. Each group has a warp of its own to
// multiply a tile's keys: the scores of more would not stay in registers.
static_assert(Config::rows <= 32, "a decode's row block has at most 32 rows");
constexpr int row_groups = Config::rows <= 8 ? 1 : Config::rows <= 16 ? 2 : 4, padded_rows = 8 * row_groups;

// Tiles of a pass are dealt out to the blocks of the cluster in turn.
constexpr int cluster = Config::cluster, own_tiles = consumers / row_groups, pass_tiles = cluster * own_tiles,
              pass_keys = pass_tiles * Config::tile;
// Bits of the first block's tiles; shifted by its rank, those of another's.
constexpr u32 first_blocks_tiles = ~0u / ((1u << cluster) - 1);
constexpr int chunk_tiles = Config::chunk / Config::tile;
static_assert(Config::chunk % Config::tile == 0 && Config::tile % 32 == 0);

// Keys and values lie in slabs: one or two blocks of a tile's columns, in rows of 128 bytes, swizzled.
constexpr int element_bytes = Config::fp8_cache ? 1 : 2;
constexpr int slab_blocks =
    box_column_blocks(Config::head_dim, Config::value_dim, Config::fp8_cache, Config::page_size);
constexpr int slab_row_bytes = 128, slab_bytes = Config::tile * slab_blocks * slab_row_bytes;
constexpr int block_columns = slab_row_bytes / element_bytes;
constexpr int key_columns = slab_blocks * block_columns;
constexpr int key_slabs = (Config::head_dim + key_columns - 1) / key_columns;

// Of values a block of the cluster brings the columns that it multiplies, where those are whole blocks, or
// else all. Where it has a single block of columns and a slab has room for two, that is of two tiles.
constexpr int all_blocks = brought_value_blocks(Config::value_dim, Config::fp8_cache, 1),
              brought_blocks = brought_value_blocks(Config::value_dim, Config::fp8_cache, cluster);
constexpr bool brings_own_columns = brought_blocks * cluster == all_blocks;
constexpr int value_blocks_of_box =
    value_box_blocks(Config::value_dim, Config::fp8_cache, cluster, slab_blocks);
constexpr int value_columns = value_blocks_of_box * block_columns;
constexpr int value_slabs = brought_blocks / value_blocks_of_box;  // of a tile, or of some
constexpr int value_tiles = slab_blocks / value_blocks_of_box;
static_assert(value_slabs == 1 || value_tiles == 1);
constexpr int value_tile_bytes = Config::tile * value_blocks_of_box * slab_row_bytes;
// Takes the first of some tiles away, with those whose values are in the same slab.
__device__ __forceinline__ u32 take_slab_tiles(u32& tiles) {
  const int first = (__ffs(tiles) - 1) / value_tiles * value_tiles;
  const u32 together = tiles & ((1u << value_tiles) - 1) << first;
  tiles ^= together;
  return together;
}

constexpr int query_slabs = (Config::head_dim + 63) / 64;
constexpr int query_slab_bytes = padded_rows * slab_row_bytes;

// A slab is filled by boxes of consecutive slots: packed keys have one a tile, pages of fewer slots than a
// tile one a page. In shared memory: [box][column block][slot of the box][128 bytes].
constexpr int box_slots =
    Config::paged && Config::page_size < Config::tile ? Config::page_size : Config::tile;
constexpr int tile_boxes = Config::tile / box_slots;

// A warp takes 50 clocks to hand a box to the copy engine, and 250 for a slab: two keep up with the memory.
// Small pages are brought by threads, 16 bytes at a time.
constexpr bool copies_rows = Config::paged && Config::page_size <= most_slots_by_threads;
static_assert(!copies_rows || Config::page_size <= Config::tile);
constexpr int bringers = copies_rows ? 128 : 64;  // threads
// Of a thread. To bring rows, or many boxes, takes more; what consumers spill waits behind keys on their way.
// All threads begin with 168.
constexpr int bring_registers = copies_rows || tile_boxes > 4 ? 72 : 56;
constexpr int consume_registers =
    (168 * decode_threads - bring_registers * (decode_threads - consumer_threads)) / consumer_threads;

// One pass over tiles of an item's chunk.
struct Pass {
  int kv_head;              // -1: no more work
  int item;                 // DecodeShared::items has it
  int tile;                 // the pass's first
  u32 visible, is_partial;  // bit i: tile + i
  bool starts_item, starts_chunk, ends_chunk, ends_item;
};

// A place in a ring of `size` buffers that are used in turn.
template <int size>
struct Ring {
  u32 used = 0;
  __device__ u32 index() const { return used % size; }
  __device__ u32 parity() const { return used / size & 1; }  // of the barrier that a use completes
};

struct alignas(16) Probabilities {
  u16 values[row_groups][pass_keys][8];  // 8 rows of a key side by side
};
// Partial states on their way into the total: lives where the probabilities were.
struct MergeStep {
  static constexpr int states = 1 + merge_step;  // the total so far comes first
  float weights[Config::rows][states][4];        // of the total, of the chunk; the chunk's sum
};
static_assert(MergeStep::states <= 32, "a warp's lanes weigh them");

// A row's, over the tiles of a pass.
struct alignas(pass_tiles < 4 ? 8 : 16) TileMaxima {
  float tile[pass_tiles];
};

struct DecodeShared {
  alignas(1024) unsigned char query[query_slabs][query_slab_bytes];
  union {
    Probabilities p;
    MergeStep merge;
  };
  TileMaxima tile_maxima[padded_rows];
  float tile_reference[pass_tiles][padded_rows];  // after the tile
  float rescale[pass_tiles][padded_rows];
  float tile_sum[pass_tiles][padded_rows][4];   // by lanes of a quad
  alignas(16) float2 row_weights[padded_rows];  // of the item's chunks so far, of the chunk that has ended
  float row_end[padded_rows];                   // of rows that end: what the output is multiplied by
  float row_reference[padded_rows];             // of rows that are merged
  u32 maxima_seen;                              // sent so that something is: nobody reads it
  int is_last_arrival;
  u32 next_items[2];
  Pass pass;
  SplitItem items[2];  // the pass's, and one that some warps may not have finished
  int pages[pass_tiles * tile_boxes];
  u64 pass_full, pass_free;
  u64 maxima_there, p_there;  // what the cluster's other blocks have sent, once a pass
  u64 claimed[2];             // of next_items, in blocks that do not claim
};

constexpr int item_words = sizeof(SplitItem) / 4;  // each written by a lane

constexpr int shared_limit = 232448;
constexpr int slots_that_fit = (shared_limit - int(sizeof(DecodeShared)) - 2048) / (slab_bytes + 16);
// Where the memory's bandwidth alone decides, a power of two: four slots of 32 KB reach 3% more of it than
// six, or than three or five (docs/cuda_decode.md). What has more to compute takes all that fit.
constexpr bool is_bound_by_memory = row_groups == 1 && !Config::fp8_cache && !copies_rows;
CHORALE_HOST_DEVICE constexpr int power_of_two_within(int x) {
  return x < 2 ? x : 2 * power_of_two_within(x / 2);
}
constexpr int most_slots = slots_that_fit < 32 ? slots_that_fit : 32,
              slots = is_bound_by_memory ? power_of_two_within(most_slots) : most_slots;
static_assert(slots >= key_slabs && slots >= value_slabs && slots <= 32);
using SlabRing = Ring<slots>;
using PassRing = Ring<1>;

// The warp is done with what `barrier` hands back; it counts as so many.
__device__ __forceinline__ void warp_arrive(u32 barrier, u32 warps = 1) {
  __syncwarp();
  if (Config::lanes_arrive || threadIdx.x % 32 == 0) mbarrier_arrive(barrier, warps);
}

// How far a consumer has come: in the ring, and the parities of the barriers it waits for, a bit each.
struct Progress {
  SlabRing slab;
  u32 key_parity = 0;    // by tile of a pass
  u32 value_parity = 0;  // by slot
};

// Each warp waits for all values but only for its own keys, and could not tell from a slot's barrier how
// often keys of other warps have come and gone there. So keys have barriers by tile, which are used once a
// pass.
struct DecodeMemory {
  alignas(1024) unsigned char slab[slots][slab_bytes];
  DecodeShared shared;
  u64 key_full[own_tiles][key_slabs], value_full[slots], slab_free[slots];

  static constexpr int full_arrivals = copies_rows ? bringers : 1;

  __device__ void initialise() {
    for (auto& tile : key_full)
      for (u64& full : tile) mbarrier_init(&full, full_arrivals);
    for (int i = 0; i < slots; ++i) {
      mbarrier_init(&value_full[i], full_arrivals);
      mbarrier_init(&slab_free[i], consumers * Config::warp_arrivals);
    }
    mbarrier_init(&shared.pass_full, item_words);
    mbarrier_init(&shared.pass_free, Config::lanes_arrive ? consumer_threads : 1);
    for (u64* there : {&shared.maxima_there, &shared.p_there, &shared.claimed[0], &shared.claimed[1]})
      mbarrier_init(there, 1);
    mbarrier_init_fence();
  }
};
static_assert(sizeof(DecodeMemory) <= shared_limit);

// --- between the blocks of a cluster: what they send each other lies at the same place in each -----------

// To a block's `place`, whose barrier `there` counts the bytes.
template <class T>
__device__ __forceinline__ void send(T& place, T x, u64& there, int rank) {
  remote_store(remote_address(shared_address(&place), rank), x, remote_address(shared_address(&there), rank));
}
// Keeps it, and sends it to all others.
template <class T>
__device__ __forceinline__ void share(T& place, T x, u64& there, int rank) {
  place = x;
  for (int distance = 1; distance < cluster; ++distance) send(place, x, there, (rank + distance) % cluster);
}

__device__ __forceinline__ void sync_consumers() { named_barrier_sync(1, consumer_threads); }
// The block's consumers wait for each other, and for so many bytes from the cluster's other blocks.
__device__ __forceinline__ void meet(u64& there, u32 bytes, u32 parity) {
  if (cluster > 1 && threadIdx.x == 0) mbarrier_arrive_expect_bytes(&there, bytes);
  sync_consumers();
  if constexpr (cluster > 1) mbarrier_wait(&there, parity);
}
__device__ __forceinline__ void sync_bringers() { named_barrier_sync(2, bringers); }

}  // namespace chorale::kernels
