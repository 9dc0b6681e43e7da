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
  __device__ Bringer(const ForwardParams& params, DecodeMemory& memory)
      : params_(params), memory_(memory), thread_(threadIdx.x - consumer_threads) {}

  __device__ void run() {
    if (thread_ == 0) prefetch_maps();
    // What a plan says does not come from the launch before this one, so it may be read before that one's
    // end.
    Task task(params_, blockIdx.x);
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
    if (thread_ == 0) leave();
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
    for (u32 tiles = task.visible; tiles != 0; tiles &= tiles - 1) {
      const int tile = __ffs(tiles) - 1;
      for (int slab = 0; slab < key_slabs; ++slab)
        bring_slab<false>(task, tile, slab, &memory_.key_full[tile][slab]);
    }
    for (u32 tiles = task.visible; tiles != 0; tiles &= tiles - 1) {
      // The next item is claimed as late as hides the delay: what one claims ahead, others cannot take.
      if (task.ends_item && (tiles & (tiles - 1)) == 0) claim();
      for (int slab = 0; slab < value_slabs; ++slab)
        bring_slab<true>(task, __ffs(tiles) - 1, slab, &memory_.value_full[slabs_.index()]);
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

  __device__ void claim() {
    if (thread_ == 0) claimed_ = gridDim.x + atomicAdd(params_.plan.next_item, 1);
  }
  __device__ int claimed() {
    if (thread_ == 0) memory_.shared.next_item = claimed_;
    sync_bringers();
    return memory_.shared.next_item;
  }

  // One slab of keys or values. What lies past the sequence's end keeps what was there. A slot of the ring is
  // one warp's: who waits for its barrier has seen all its turns.
  template <bool values>
  __device__ __forceinline__ void bring_slab(const Task& task, int tile, int slab, u64* full) {
    const int slot = slabs_.index();
    if (copies_rows || slot % (bringers / 32) == thread_ / 32) {
      mbarrier_wait(&memory_.slab_free[slot], slabs_.parity() ^ 1);
      if constexpr (copies_rows)
        copy_rows<values>(task, tile, slab, memory_.slab[slot], full);
      else
        copy_boxes<values>(task, tile, slab, memory_.slab[slot], full);
    }
    ++slabs_.used;
  }

  // By the copy engine; lanes share the boxes.
  template <bool values>
  __device__ __forceinline__ void copy_boxes(const Task& task, int tile, int slab, unsigned char* to,
                                             u64* full) {
    const int first = (task.tile + tile) * Config::tile;
    const int live = min(tile_boxes, (task.split.kv_len - first + box_slots - 1) / box_slots);
    const int lane = thread_ % 32;
    if (lane == 0) mbarrier_arrive_expect_bytes(full, live * box_bytes);
    __syncwarp();
    const TensorMap* map = values ? &params_.v : &params_.k;
    for (int box = lane; box < live; box += 32) {
      int page = 0, slot = task.split.kv_first + first;
      if constexpr (Config::paged) {
        page = memory_.shared.pages[tile * tile_boxes + box];
        slot = Config::page_size > Config::tile ? first % Config::page_size : 0;
      }
      if constexpr (column_blocks > 1)
        copy_streamed_box(to + box * box_bytes, map, full, 0, slot, slab * column_blocks, task.kv_head, page);
      else
        copy_streamed_box(to + box * box_bytes, map, full, slab * slab_columns, task.kv_head, slot, page);
    }
  }
  // By threads: each has one of a row's eight pieces of 16 bytes, in every sixteenth row.
  template <bool values>
  __device__ __forceinline__ void copy_rows(const Task& task, int tile, int slab, unsigned char* to,
                                            u64* full) {
    constexpr int element_bytes = Config::fp8_cache ? 1 : 2, step = bringers / 8;
    constexpr int row_bytes = (values ? Config::value_dim : Config::head_dim) * element_bytes;
    const Rows& rows = values ? params_.v_rows : params_.k_rows;
    const long long page_stride = values ? params_.v_page_stride : params_.k_page_stride;
    const int piece = thread_ % 8, first_row = thread_ / 8;
    const int live = task.split.kv_len - (task.tile + tile) * Config::tile;
    if (slab * slab_row_bytes + piece * 16 < row_bytes) {
      const char* from = static_cast<const char*>(rows.data) +
                         task.kv_head * rows.head_stride * element_bytes + slab * slab_row_bytes + piece * 16;
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

  // The last block of threads to finish leaves the counters as it found them.
  __device__ void leave() const {
    if (count_arrival(reinterpret_cast<u32*>(params_.plan.next_item + 1), gridDim.x - 1) == gridDim.x - 1)
      params_.plan.next_item[0] = 0;
  }

  const ForwardParams& params_;
  DecodeMemory& memory_;
  u32 thread_;
  int claimed_ = 0;
  SlabRing slabs_;
  PassRing passes_;
};

}  // namespace chorale::kernels
