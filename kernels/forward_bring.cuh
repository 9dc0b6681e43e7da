// The forward kernel's first warpgroup: it brings queries, keys and values.
#pragma once

#include "forward_memory.cuh"

namespace chorale::kernels {

// The only question of the loader: where do the keys of tile `tile` lie? Boxes of consecutive slots: packed
// keys have one a tile, pages of fewer slots than a tile one a page.
constexpr int box_slots =
    Config::paged && Config::page_size < Config::tile ? Config::page_size : Config::tile;
constexpr int boxes = Config::tile / box_slots;

// Lanes share the boxes of a tile. Every lane takes part, and knows that the tile's place is free.
template <int column_blocks>
__device__ __forceinline__ void bring_tile(const PlanView& plan, const Item& item, int tile,
                                           const TensorMap& map, unsigned char* to, u64* full) {
  const int lane = threadIdx.x % 32;
  const int live = min(boxes, (item.kv_len - tile * Config::tile + box_slots - 1) / box_slots);
  if (lane == 0) mbarrier_arrive_expect_bytes(full, live * box_slots * block_row_bytes * column_blocks);
  for (int i = lane; i < live * column_blocks; i += 32) {
    const int box = i / column_blocks, column = i % column_blocks;
    const SlotPlace place = find_slot(plan, item, tile * Config::tile + box * box_slots);
    copy_box(to + column * (Config::tile * block_row_bytes) + box * (box_slots * block_row_bytes), &map, full,
             column * block_columns, item.kv_head, place.slot, place.page);
  }
}

// One warp takes items and brings their queries, early enough to hide how long that takes, late enough for
// the last items to go to whoever is done first.
//
// Values that nobody sees are multiplied by 0, which gives NaN where they are not finite. To look at the
// values of every partly visible tile would hold the products up, so an item that gave NaN is done again,
// carefully; its outputs are written over. When a place in the ring is free again, it is known whether its
// item was good. At the end pauses go round, so that the last items come to an end too.
__device__ void take_items(const ForwardParams& params, ForwardMemory& shared) {
  if (threadIdx.x % 32 != 0) return;
  prefetch_tensor_map(&params.q);
  u32 parity = 1;
  bool more = true;
  int pauses = 0;  // since the last item
  for (ItemTurn turn;; turn.next(), parity ^= 1) {
    mbarrier_wait(&shared.keys_brought, parity);
    mbarrier_wait(&shared.item_free[turn.index], turn.parity ^ 1);
    Item item = shared.item[turn.index];
    item.careful = shared.again[turn.index];
    shared.again[turn.index] = false;
    if (item.careful) {
      pauses = 0;
    } else {
      if (more) item = find_item(params, atomicAdd(params.plan.next_item, 1));
      more = more && item.sequence != Item::none;
      if (!more) item.sequence = ++pauses < ForwardMemory::items ? Item::pause : Item::none;
    }
    shared.item[turn.index] = item;
    mbarrier_arrive(&shared.item_known[turn.index]);
    if (item.sequence == Item::none) return leave(params.plan);
    const QueryTurn query(turn);
    mbarrier_wait(&shared.query_free[query.index], query.parity ^ 1);
    u64* full = &shared.query_full[query.index];
    if (item.sequence == Item::pause) {
      mbarrier_arrive(full);
      continue;
    }
    mbarrier_arrive_expect_bytes(full, Config::rows * block_row_bytes * key_blocks);
    for (int column = 0; column < key_blocks; ++column)
      copy_streamed_box(shared.query[query.index] + column * (forward_rows * block_row_bytes), &params.q,
                        full, column * block_columns, item.kv_head * Config::group, item.q_row);
  }
}

// Every tile that an item sees, with the flags of its step. An item that sees none still has one step, whose
// scores are all hidden.
template <class Function>
__device__ __forceinline__ void for_each_step(const ForwardParams& params, const Item& item,
                                              Function function) {
  VisibleTiles tiles(params, item.rows(params.first_query_head));
  int flags = Step::chunk_start;
  for (bool more = true; more;) {
    const int tile = tiles.done() ? 0 : tiles.tile();
    if (tiles.done() || tiles.is_partial()) flags |= Step::partial | (item.careful ? Step::careful : 0);
    if ((tile + 1) * Config::tile > item.kv_len) flags |= Step::past_end;
    if (!tiles.done()) tiles.next();
    more = !tiles.done();
    constexpr int chunk_tiles = Config::chunk / Config::tile;
    if (!more)
      flags |= Step::last;
    else if (tiles.tile() / chunk_tiles != tile / chunk_tiles)
      flags |= Step::chunk_end;
    function(Step{flags, tile});
    flags = (flags & Step::chunk_end) != 0 ? Step::chunk_start : 0;
  }
}
template <class Function>
__device__ __forceinline__ void for_each_item(ForwardMemory& shared, Function function) {
  for (ItemTurn turn;; turn.next()) {
    mbarrier_wait(&shared.item_known[turn.index], turn.parity);
    const Item item = shared.item[turn.index];
    if (item.sequence == Item::none) return;
    __syncwarp();
    if (Config::lanes_arrive || threadIdx.x % 32 == 0) mbarrier_arrive(&shared.item_free[turn.index]);
    function(item);
  }
}

// One warp brings the tiles of keys, another those of values: values are needed a step later, and neither
// waits for room for the other. From the keys' ring the consumers also learn of pauses, and of the end.
__device__ void bring_keys(const ForwardParams& params, ForwardMemory& shared) {
  const bool speaks = threadIdx.x % 32 == 0;
  if (speaks) prefetch_tensor_map(&params.k);
  KeyTurn turn;
  const auto announce = [&](Step step) {
    mbarrier_wait(&shared.key_free[turn.index], turn.parity ^ 1);
    __syncwarp();
    if (speaks) shared.step[turn.index] = step;
  };
  const auto announce_only = [&](int flags) {
    announce({flags, 0});
    if (speaks) mbarrier_arrive(&shared.key_full[turn.index]);
    turn.next();
  };
  for_each_item(shared, [&](const Item& item) {
    if (item.sequence == Item::pause)
      announce_only(Step::pause | Step::last);  // it has a place among the queries, too
    else
      for_each_step(params, item, [&](Step step) {
        announce(step);
        bring_tile<key_blocks>(params.plan, item, step.tile, params.k, shared.key[turn.index],
                               &shared.key_full[turn.index]);
        turn.next();
      });
    if (speaks) mbarrier_arrive(&shared.keys_brought);
  });
  announce_only(Step::none);
}
__device__ void bring_values(const ForwardParams& params, ForwardMemory& shared) {
  const bool speaks = threadIdx.x % 32 == 0;
  if (speaks) prefetch_tensor_map(&params.v);
  ValueTurn turn;
  for_each_item(shared, [&](const Item& item) {
    if (item.sequence == Item::pause) return;
    for_each_step(params, item, [&](Step step) {
      mbarrier_wait(&shared.value_free[turn.index], turn.parity ^ 1);
      __syncwarp();
      if (speaks)
        shared.value_step[turn.index] = {min(item.kv_len - step.tile * Config::tile, Config::tile),
                                         (step.flags & Step::careful) != 0};
      bring_tile<value_blocks>(params.plan, item, step.tile, params.v, shared.value[turn.index],
                               &shared.value_full[turn.index]);
      turn.next();
    });
  });
  mbarrier_wait(&shared.value_free[turn.index], turn.parity ^ 1);
  if (speaks) {
    shared.value_step[turn.index].live = -1;
    mbarrier_arrive(&shared.value_full[turn.index]);
  }
}

// The last warp makes values safe to multiply. 0 times NaN is NaN, so what a row does not see must be finite
// where it is multiplied with p = 0: rows past the sequence's end become zero. In a tile that is partly
// visible values that are not finite are rare: where the products show that there are some (take_items), they
// become zero too, and the consumers add them where they are seen (add_infinite_values).
constexpr int value_pieces = Config::tile * value_blocks * 8;  // of 16 bytes, 8 a row

__device__ __forceinline__ void clear_dead_values(uint4* pieces, int live, int lane) {
  for (int column = 0; column < value_blocks; ++column)
    for (int i = live * 8 + lane; i < Config::tile * 8; i += scrub_threads)
      pieces[column * Config::tile * 8 + i] = {0, 0, 0, 0};
}
__device__ __forceinline__ bool are_all_finite(const uint4* pieces, int lane) {
  u32 zero[4] = {};  // 0 times a number that is not finite is NaN, and stays it
#pragma unroll 2
  for (int i = lane; i < value_pieces; i += scrub_threads) {
    const uint4 x = pieces[i];
    zero[0] = add_zero_times<Config::bfloat16>(zero[0], x.x);
    zero[1] = add_zero_times<Config::bfloat16>(zero[1], x.y);
    zero[2] = add_zero_times<Config::bfloat16>(zero[2], x.z);
    zero[3] = add_zero_times<Config::bfloat16>(zero[3], x.w);
  }
  const u32 any = (zero[0] | zero[1] | zero[2] | zero[3]) & 0x7fff7fffu;
  return __all_sync(~0u, any == 0);
}
__device__ __noinline__ void clear_infinite_values(uint4* pieces, u32* keys, int lane) {
  u32* pairs = reinterpret_cast<u32*>(pieces);
  for (int i = lane; i < 4 * value_pieces; i += scrub_threads) {
    u32 x = pairs[i];
    if (!clear_infinite<Config::bfloat16>(x)) continue;
    pairs[i] = x;
    const int key = i / 32 % Config::tile;
    atomicOr(keys + key / 32, 1u << key % 32);
  }
}
__device__ void scrub(ForwardMemory& shared) {
  const int lane = static_cast<int>(threadIdx.x) % scrub_threads;
  for (ValueTurn turn;; turn.next()) {
    mbarrier_wait(&shared.value_full[turn.index], turn.parity);
    const ValueStep step = shared.value_step[turn.index];
    if (step.live < 0) return;
    auto* pieces = reinterpret_cast<uint4*>(shared.value[turn.index]);
    if (step.live < Config::tile) clear_dead_values(pieces, step.live, lane);
    if (Config::masked && step.careful) {
      __syncwarp();
      KeySet& infinite = shared.infinite[turn.index];
      const bool finite = are_all_finite(pieces, lane);
      if (lane == 0) infinite = {{}, !finite};
      __syncwarp();
      if (!finite) clear_infinite_values(pieces, infinite.bits, lane);
    }
    if (step.live < Config::tile || step.careful) fence_proxy_async();
    mbarrier_arrive(&shared.value_safe[turn.index]);
  }
}

}  // namespace chorale::kernels
