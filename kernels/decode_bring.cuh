// The decode kernel's last warps: they find the work and bring queries, keys and values.
#pragma once

#include "decode_memory.cuh"
#include "visibility.cuh"

namespace chorale::kernels {

// A pass as those who bring know it.
struct Task : Pass {
  SplitItem split;
  int word;  // of it, in each lane: what DecodeShared::items gets

  // Item `index` of the launch, its first pass. Neighbouring items are KV heads of the same keys, which lie
  // side by side in memory.
  __device__ __forceinline__ Task(const ForwardParams& params, int index) : Pass{} {
    // Read beside the count, not after it.
    const int number = index / params.kv_heads, lane = threadIdx.x % 32;
    const SplitItem& found = params.plan.split_items[min(number, params.item_room - 1)];
    split = found;
    word = lane < item_words ? reinterpret_cast<const int*>(&found)[lane] : 0;
    kv_head = number < params.plan.counts->split_items ? index % params.kv_heads : -1;
    tile = split.first_chunk * chunk_tiles;
  }
  __device__ __forceinline__ RowRange rows(int first_query_head) const {
    const int head = first_query_head + kv_head * Config::group;
    return {split.sequence,
            head,
            head + Config::group - 1,
            split.q_position,
            split.q_position + split.positions - 1,
            split.kv_len};
  }
};

class Bringer {
 public:
  __device__ Bringer(const ForwardParams& params, DecodeMemory& memory, int rank)
      : params_(params), memory_(memory), thread_(threadIdx.x - consumer_threads), rank_(rank) {}

  __device__ void run() {
    if (thread_ == 0) prefetch_maps();
    // What a plan says does not come from the launch before this one, so it may be read before that one's
    // end.
    Task task(params_, blockIdx.x / cluster);
    while (task.kv_head >= 0) {
      prepare(task);
      grid_dependency_wait();
      bring_pass(task);
      while (!task.ends_item) {
        task.tile = task.ends_chunk ? (task.tile / chunk_tiles + 1) * chunk_tiles : task.tile + pass_tiles;
        prepare(task);
        bring_pass(task);
      }
      const int item = task.item ^ 1;
      task = Task(params_, claimed());
      task.item = item;
    }
    grid_dependency_wait();
    announce(task, 0);
    if (rank_ == 0 && thread_ == 0) leave();
  }

 private:
  __device__ void prefetch_maps() const {
    prefetch_tensor_map(&params_.q);
    prefetch_tensor_map(&params_.k);
    prefetch_tensor_map(&params_.v);
  }

  // Which tiles of the pass are seen, and where their keys lie. Every warp finds out.
  __device__ void prepare(Task& task) const {
    const int chunk = task.tile / chunk_tiles, item_end = task.split.first_chunk + task.split.chunks;
    const int end = min((chunk + 1) * chunk_tiles, (task.split.kv_len + Config::tile - 1) / Config::tile);
    task.starts_chunk = task.tile % chunk_tiles == 0;
    task.starts_item = task.starts_chunk && chunk == task.split.first_chunk;
    task.ends_chunk = task.tile + pass_tiles >= end;
    task.ends_item = task.ends_chunk && chunk + 1 == item_end;
    const int lane = thread_ % 32, tile = task.tile + lane;
    const int seen = lane < pass_tiles && tile < end
                         ? tile_coverage(params_.plan, task.rows(params_.first_query_head), tile)
                         : static_cast<int>(empty);
    task.visible = __ballot_sync(~0u, seen != empty);
    task.is_partial = __ballot_sync(~0u, seen == partial);
    if constexpr (Config::paged) {
      constexpr int size = Config::paged ? Config::page_size : 1;
      const int* table = params_.plan.block_table + static_cast<long long>(task.split.sequence) *
                                                        params_.plan.counts->block_table_stride;
      for (int box = thread_; box < pass_tiles * tile_boxes; box += bringers) {
        const int position = task.tile * Config::tile + box * box_slots;
        if (position < task.split.kv_len) memory_.shared.pages[box] = table[position / size];
      }
    }
  }

  __device__ void bring_pass(const Task& task) {
    announce(task, query_slabs * Config::rows * slab_row_bytes);
    if (thread_ < query_slabs)
      copy_box(memory_.shared.query[thread_], &params_.q, &memory_.shared.pass_full, thread_ * 64,
               task.kv_head * Config::group, task.split.q_row);
    for (u32 tiles = task.visible & first_blocks_tiles << rank_; tiles != 0; tiles &= tiles - 1) {
      const int tile = __ffs(tiles) - 1;
      for (int slab = 0; slab < key_slabs; ++slab)
        bring_slab<KeySlabs>(task, 1u << tile, slab, &memory_.key_full[tile / cluster][slab]);
    }
    for (u32 left = task.visible; left != 0;) {
      const u32 tiles = take_slab_tiles(left);
      // The next item is claimed as late as hides the delay: what one claims ahead, others cannot take.
      if (task.ends_item && left == 0) claim();
      for (int slab = 0; slab < value_slabs; ++slab)
        bring_slab<ValueSlabs>(task, tiles, slab, &memory_.value_full[slabs_.index()]);
    }
    if (task.ends_item && task.visible == 0) claim();
    sync_bringers();  // the next pass writes pages
  }

  __device__ void announce(const Task& task, u32 query_bytes) {
    if (thread_ < 32) {
      mbarrier_wait(&memory_.shared.pass_free, passes_.parity() ^ 1);
      if (thread_ == 0) memory_.shared.pass = task;
      if (thread_ < item_words) {
        if (task.starts_item) reinterpret_cast<int*>(&memory_.shared.items[task.item])[thread_] = task.word;
        mbarrier_arrive_expect_bytes(&memory_.shared.pass_full, thread_ == 0 ? query_bytes : 0);
      }
    }
    sync_bringers();
    ++passes_.used;
  }

  // The cluster's first block does it.
  __device__ void claim() {
    if (rank_ == 0 && thread_ == 0) claimed_ = gridDim.x / cluster + atomicAdd(params_.plan.next_item, 1);
  }
  // The same in all blocks. A block that is an item ahead of another has waited for its consumers, so two
  // places are enough.
  __device__ int claimed() {
    const int place = claims_.index();
    DecodeShared& shared = memory_.shared;
    if (thread_ == 0) {
      if (rank_ != 0)
        mbarrier_arrive_expect_bytes(&shared.claimed[place], sizeof(u32));
      else
        share(shared.next_items[place], static_cast<u32>(claimed_), shared.claimed[place], 0);
    }
    if (rank_ == 0)
      sync_bringers();
    else
      mbarrier_wait(&shared.claimed[place], claims_.parity());
    ++claims_.used;
    return static_cast<int>(shared.next_items[place]);
  }

  // What slabs of keys, or of values, are made of.
  struct KeySlabs {
    static constexpr bool values = false;
    static constexpr int dim = Config::head_dim, blocks = slab_blocks, tiles = 1;
  };
  struct ValueSlabs {
    static constexpr bool values = true;
    static constexpr int dim = Config::value_dim, blocks = value_blocks_of_box, tiles = value_tiles;
  };

  // One slab, of some tiles. What lies past the sequence's end keeps what was there. A slot of the ring is
  // one warp's: who waits for its barrier has seen all its turns.
  template <class Slabs>
  __device__ __forceinline__ void bring_slab(const Task& task, u32 tiles, int slab, u64* full) {
    const int slot = slabs_.index();
    if (copies_rows || slot % (bringers / 32) == thread_ / 32) {
      mbarrier_wait(&memory_.slab_free[slot], slabs_.parity() ^ 1);
      const int before = Slabs::values && brings_own_columns ? rank_ * brought_blocks : 0;
      const int block = before + slab * Slabs::blocks;
      if constexpr (copies_rows)
        copy_rows<Slabs>(task, tiles, block, memory_.slab[slot], full);
      else
        copy_boxes<Slabs>(task, tiles, block, memory_.slab[slot], full);
    }
    ++slabs_.used;
  }

  // By the copy engine; lanes share the boxes.
  template <class Slabs>
  __device__ __forceinline__ void copy_boxes(const Task& task, u32 tiles, int block, unsigned char* to,
                                             u64* full) {
    constexpr int box_bytes = box_slots * Slabs::blocks * slab_row_bytes;
    const int lane = thread_ % 32, tile = __ffs(tiles) - 1, boxes = live_boxes(task, tile);
    const int others = Slabs::tiles > 1 ? tiles & (tiles - 1) : 0, other = __ffs(others) - 1;
    static_assert(Slabs::tiles <= 2);
    const int other_boxes = others != 0 ? live_boxes(task, other) : 0;
    if (lane == 0) mbarrier_arrive_expect_bytes(full, (boxes + other_boxes) * box_bytes);
    __syncwarp();
    const TensorMap* map = Slabs::values ? &params_.v : &params_.k;
    const auto copy = [&](int tile, int box) {
      const int first = (task.tile + tile) * Config::tile;
      int page = 0, slot = task.split.kv_first + first;
      if constexpr (Config::paged) {
        page = memory_.shared.pages[tile * tile_boxes + box];
        slot = Config::page_size > Config::tile ? first % Config::page_size : 0;
      }
      unsigned char* at = to + (tile % Slabs::tiles * tile_boxes + box) * box_bytes;
      if constexpr (slab_blocks > 1)
        copy_streamed_box(at, map, full, 0, slot, block, task.kv_head, page);
      else
        copy_streamed_box(at, map, full, block * block_columns, task.kv_head, slot, page);
    };
    for (int box = lane; box < boxes; box += 32) copy(tile, box);
    if constexpr (Slabs::tiles > 1)
      for (int box = lane; box < other_boxes; box += 32) copy(other, box);
  }
  static __device__ __forceinline__ int live_boxes(const Task& task, int tile) {
    return min(tile_boxes,
               (task.split.kv_len - (task.tile + tile) * Config::tile + box_slots - 1) / box_slots);
  }
  // By threads: each has one of a row's eight pieces of 16 bytes, in every sixteenth row.
  template <class Slabs>
  __device__ __forceinline__ void copy_rows(const Task& task, u32 tiles, int block, unsigned char* to,
                                            u64* full) {
    constexpr int step = bringers / 8;
    const Rows& rows = Slabs::values ? params_.v_rows : params_.k_rows;
    const long long page_stride = Slabs::values ? params_.v_page_stride : params_.k_page_stride;
    const int piece = thread_ % 8, first_row = thread_ / 8, byte = block * slab_row_bytes + piece * 16;
    static_assert(!copies_rows || slab_blocks == 1);
    const int tile = __ffs(tiles) - 1, live = task.split.kv_len - (task.tile + tile) * Config::tile;
    if (byte < Slabs::dim * element_bytes) {
      const char* from =
          static_cast<const char*>(rows.data) + task.kv_head * rows.head_stride * element_bytes + byte;
      const u32 base = shared_address(to) + ((piece ^ (first_row & 7)) << 4);
#pragma unroll
      for (int row = first_row; row < Config::tile; row += step) {
        if (row >= live) break;
        const long long page = memory_.shared.pages[tile * tile_boxes + row / box_slots];
        copy_16_bytes(base + row * slab_row_bytes,
                      from + (page * page_stride + row % box_slots * rows.token_stride) * element_bytes);
      }
    }
    copies_arrive(full);
  }

  // The last cluster to finish leaves the counters as it found them.
  __device__ void leave() const {
    const u32 last = gridDim.x / cluster - 1;
    if (count_arrival(reinterpret_cast<u32*>(params_.plan.next_item + 1), last) == last)
      params_.plan.next_item[0] = 0;
  }

  const ForwardParams& params_;
  DecodeMemory& memory_;
  u32 thread_;
  int rank_;
  int claimed_ = 0;
  Ring<2> claims_;
  SlabRing slabs_;
  PassRing passes_;
};

}  // namespace chorale::kernels
