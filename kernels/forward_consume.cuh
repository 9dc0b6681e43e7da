// The forward kernel's consumers: the loop over tiles.
#pragma once

#include "forward_memory.cuh"
#include "forward_rows.cuh"
#include "forward_store.cuh"
#include "visibility.cuh"
#include "wgmma.cuh"

namespace chorale::kernels {

using Scores = Wgmma<Config::tile, Config::bfloat16>;
using Outputs = Wgmma<Config::value_dim, Config::bfloat16>;

// Warpgroups take turns at issuing products.
__device__ __forceinline__ void wait_for_turn(int warpgroup) { named_barrier_sync(1 + warpgroup, 256); }
__device__ __forceinline__ void pass_turn(int warpgroup) { named_barrier_arrive(2 - warpgroup, 256); }

__device__ __forceinline__ void multiply_keys(float (&scores)[score_count], u32 query, u32 key) {
  const u32 a = describe_rows(query), b = describe_rows(key);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Config::head_dim / 16; ++step) {
    const u32 block = step / 4, inside = 2 * (step % 4);
    Scores::rows_by_rows(scores, a + block * (forward_rows * block_row_bytes >> 4) + inside,
                         b + block * (Config::tile * block_row_bytes >> 4) + inside, step != 0);
  }
  wgmma_commit();
}

__device__ __forceinline__ void multiply_values(float (&out)[out_count], const u32 (&p)[score_count / 2],
                                                u32 value, bool fresh) {
  const u32 b = describe_columns(value, Config::tile * block_row_bytes);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < Config::tile / 16; ++step)
    Outputs::registers_by_columns(out, p + 4 * step, b + step * 128, step != 0 || !fresh);
  wgmma_commit();
}

// Whether a tile's scores go through programs.
__device__ __forceinline__ bool runs_programs(Step step) {
  return Config::scored || (Config::masked && (step.flags & Step::partial) != 0);
}

// What the programs read of tables for a tile, where they run: a thread its two rows' values, each lane its
// share of the keys'. To be read before the scores are there.
class TileValues {
 public:
  RowValues row[2];

  __device__ __forceinline__ TileValues(const ForwardParams& params, const Item& item, const ThreadRows& rows,
                                        Step step) {
    if (!runs_programs(step)) return;
    const int lane = lane_now();
    const TableView* tables = params.plan.tables;
    if constexpr (RowValues::count > 0)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const RowName name(params, item.kv_head, item.q_position, rows.of(r, lane));
        row[r] = program_rows(tables, item.sequence, name.h, name.q);
      }
    if constexpr (KeyValues::count > 0)
#pragma unroll
      for (int i = 0; i < Config::tile / 32; ++i)
        share_[i] = program_keys(tables, item.sequence, step.tile * Config::tile + 32 * i + lane);
  }
  // Of column 8 i + 2 (lane % 4) + e, where a score lies. Every lane takes part.
  __device__ __forceinline__ KeyValues key(int i, int e, int lane) const {
    KeyValues key;
#pragma unroll
    for (int n = 0; n < KeyValues::count; ++n)
      key.v[n] = __shfl_sync(~0u, share_[i / 4].v[n], i % 4 * 8 + lane % 4 * 2 + e);
    return key;
  }

 private:
  KeyValues share_[Config::tile / 32];
};

// Score and mask programs.
__device__ __forceinline__ void apply_programs(float (&scores)[score_count], const ForwardParams& params,
                                               const Item& item, const ThreadRows& rows, Step step,
                                               const TileValues& values) {
  if (!runs_programs(step)) return;
  const int lane = lane_now();
#pragma unroll
  for (int i = 0; i < score_count / 4; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int k = step.tile * Config::tile + 8 * i + 2 * (lane % 4) + e;
      const KeyValues key = values.key(i, e, lane);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const RowName name(params, item.kv_head, item.q_position, rows.of(r, lane));
        float& score = scores[4 * i + 2 * r + e];
        score = finished_score(params, score, item.sequence, name, k, (step.flags & Step::partial) != 0,
                               values.row[r], [&] { return key; });
      }
    }
}
// And the sequence's end.
__device__ __forceinline__ void finish_scores(float (&scores)[score_count], const ForwardParams& params,
                                              const Item& item, const ThreadRows& rows, Step step,
                                              const TileValues& values) {
  apply_programs(scores, params, item, rows, step, values);
  if ((step.flags & Step::past_end) == 0) return;
  const int live = item.kv_len - step.tile * Config::tile - 2 * (lane_now() % 4);
#pragma unroll
  for (int i = 0; i < score_count; ++i)
    if (i / 4 * 8 + i % 2 >= live) scores[i] = -infinity;
}

// Values that are not finite were cleared from a partly visible tile (scrub): here they meet the rows that
// see them. Whether the sum is NaN or infinite does not depend on when they come in. Rare: from the cache's
// own memory.
__device__ __forceinline__ void add_infinite_values(float (&out)[out_count], const u32 (&p)[score_count / 2],
                                                    const ForwardParams& params, const Item& item,
                                                    const ThreadRows& rows, int tile, const KeySet& keys) {
  u32 pairs[score_count / 2];  // in memory, since which one is needed is not known
#pragma unroll
  for (int i = 0; i < score_count / 2; ++i) pairs[i] = p[i];
  const int lane = lane_now();
#pragma unroll 1
  for (int key = 0; key < Config::tile; ++key) {
    if ((keys.bits[key / 32] >> key % 32 & 1) == 0) continue;
    const int k = tile * Config::tile + key;
    float probability[2];
    bool visible[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const u32 pair = __shfl_sync(~0u, pairs[key / 8 * 2 + r], key % 8 / 2, 4);
      probability[r] = unpack<Config::bfloat16>(key % 2 == 0 ? pair : pair >> 16);
      const RowName name(params, item.kv_head, item.q_position, rows.of(r, lane));
      visible[r] = is_visible(params, item.sequence, name, k);
    }
    const SlotPlace place = find_slot(params.plan, item, k);
    const u16* values = static_cast<const u16*>(params.v_rows.data) + place.page * params.v_page_stride +
                        place.slot * params.v_rows.token_stride + item.kv_head * params.v_rows.head_stride +
                        2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < out_count; ++i) {
      const float value = unpack<Config::bfloat16>(values[i / 4 * 8 + i % 2]);
      const int r = i / 2 % 2;
      if (visible[r] && !(fabsf(value) < infinity))
        out[i] = __fadd_rn(out[i], __fmul_rn(probability[r], value));
    }
  }
  __syncwarp();  // all have read `keys`, which lane 0 releases next
}

// Before the step's keys are released, and with them this.
__device__ __forceinline__ Step read_step(const ForwardMemory& shared, int index) {
  return {uniform(shared.step[index].flags), uniform(shared.step[index].tile)};
}

// `address`, not before `x` is known: `zero` is 0, but the compiler does not know.
__device__ __forceinline__ u32 ordered_after(float x, u32 address, u32 zero) {
  return address + (__float_as_uint(x) & zero);
}

__device__ void consume(const ForwardParams& params, ForwardMemory& shared, int warpgroup) {
  const ThreadRows rows(warpgroup);
  const bool speaks = Config::lanes_arrive || threadIdx.x % 32 == 0;  // for its warp
  const u32 own_rows = warpgroup * 64 * block_row_bytes;
  const u32 zero = shared.zero;
  ItemTurn item;
  KeyTurn key;
  ValueTurn value;
  if (warpgroup == 1) pass_turn(1);

  float out[out_count], scores[score_count], rescale[2];
  u32 p[score_count / 2];
  Softmax state;
  Total total(shared.out[warpgroup], rows);

  const auto await_keys = [&] { mbarrier_wait(shared_address(shared.key_full, key.index), key.parity); };
  const auto await_query = [&](ItemTurn turn) {
    const QueryTurn query(turn);
    mbarrier_wait(shared_address(shared.query_full, query.index), query.parity);
  };
  const auto ask_for_scores = [&](ItemTurn of) {
    multiply_keys(scores, shared_address(shared.query, QueryTurn(of).index) + own_rows,
                  shared_address(shared.key, key.index));
  };
  const auto ask_for_values = [&](Step step) {
    mbarrier_wait(shared_address(shared.value_safe, value.index), value.parity);
    multiply_values(out, p, shared_address(shared.value, value.index), (step.flags & Step::chunk_start) != 0);
  };
  // What the scores of `step` were made of is no longer needed; asked for after `when` is known.
  const auto release_keys = [&](ItemTurn of, Step step, float when) {
    mbarrier_arrive_if(speaks, ordered_after(when, shared_address(shared.key_free, key.index), zero));
    mbarrier_arrive_if(speaks && (step.flags & Step::last) != 0,
                       shared_address(shared.query_free, QueryTurn(of).index));
    key.next();
  };
  const auto release_values = [&] {
    if (speaks) mbarrier_arrive(shared_address(shared.value_free, value.index));
    value.next();
  };
  const auto add_infinite = [&](Step step) {
    if constexpr (Config::masked)
      if ((step.flags & Step::careful) != 0 && uniform(shared.infinite[value.index].any))
        add_infinite_values(out, p, params, shared.item[item.index], rows, step.tile,
                            shared.infinite[value.index]);
  };
  // A pause has a place in the rings of keys, queries and items.
  const auto release_pause = [&](ItemTurn turn, Step step) {
    await_query(turn);  // nobody may release it before all have released the item that had the place before
    __syncwarp();
    release_keys(turn, step, 0.f);
    mbarrier_arrive_if(speaks, shared_address(shared.item_free, turn.index));
  };
  // Its last chunk has ended in `chunk`.
  const auto finish_item = [&](Softmax chunk) {
    total.finish(chunk, out, params.factor);
    const Item& done = shared.item[item.index];
    const RowEnds ends(chunk, params, done, rows);
    const bool finite = store(out, ends, params, done, rows, shared.out[warpgroup]);
    if (Config::masked && !finite && !done.careful) shared.again[item.index] = true;
    __syncwarp();
    if (speaks) mbarrier_arrive(shared_address(shared.item_free, item.index));
  };

  for (;; item.next()) {
    // Items without a pause: the first tile has nothing to run beside.
    await_keys();
    Step step = read_step(shared, key.index);
    if ((step.flags & Step::none) != 0) break;
    if ((step.flags & Step::pause) != 0) {
      release_pause(item, step);
      continue;
    }
    state.reset();
    await_query(item);
    ask_for_scores(item);
    const TileValues values(params, shared.item[item.index], rows, step);
    wgmma_wait<0>();
    pin(scores);
    release_keys(item, step, 0.f);
    finish_scores(scores, params, shared.item[item.index], rows, step, values);
    state.take(scores, params.factor, rescale, [](float) {});
    pack(p, scores);

    // `step` has its probabilities in p; `following`, of the same item or the next, gets them beside step's P
    // V.
    for (;;) {
      const bool item_ends = (step.flags & Step::last) != 0;
      const bool chunk_ends = item_ends || (step.flags & Step::chunk_end) != 0;
      ItemTurn of_following = item;
      await_keys();
      if (item_ends) {
        of_following.next();
        if ((read_step(shared, key.index).flags & Step::pause) != 0) break;
        await_query(of_following);
      }
      wait_for_turn(warpgroup);
      ask_for_scores(of_following);
      const Step following = read_step(shared, key.index);  // beside the products: nothing waits for it
      const TileValues values(params, shared.item[of_following.index], rows, following);
      ask_for_values(step);
      pass_turn(warpgroup);
      Softmax ended;
      if (chunk_ends) {
        ended = state;
        ended.add_quad();
        state.reset();
      }
      if (!item_ends && (following.flags & Step::partial) == 0 && (step.flags & Step::careful) == 0) {
        // Most tiles. From here to the last pin is one block of code, which ptxas mixes: whatever is not an
        // exponential runs in the 8 clocks that one takes. It would wait for P V at the very beginning, but
        // does not move that ahead of the keys' release, and this not ahead of the exponentials that it is
        // tied to. What the pins hold here would else go behind the next branch.
        const Step whole{0, following.tile};
        wgmma_wait<1>();
        pin(scores);
        apply_programs(scores, params, shared.item[item.index], rows, whole, values);
        const bool rises = state.take(scores, params.factor, rescale,
                                      [&](float midway) { release_keys(item, following, midway); });
        wgmma_wait<0>();
        pin(out);
        release_values();
        pack(p, scores);
        pin(p);
        pin(state.sum);
        if (chunk_ends)
          total.add(ended, out, params.factor);
        else if (__any_sync(~0u, rises))
          multiply(out, rescale);
      } else {
        wgmma_wait<1>();
        pin(scores);
        release_keys(of_following, following, 0.f);
        finish_scores(scores, params, shared.item[of_following.index], rows, following, values);
        const bool rises = state.take(scores, params.factor, rescale, [](float) {});
        wgmma_wait_behind(item_ends);
        pin(out);
        add_infinite(step);
        release_values();
        if (item_ends)
          finish_item(ended);
        else if (chunk_ends)
          total.add(ended, out, params.factor);
        else if (__any_sync(~0u, rises))
          multiply(out, rescale);
        pack(p, scores);
      }
      item = of_following;
      step = following;
    }
    // The last tile before a pause.
    ask_for_values(step);
    wgmma_wait<0>();
    pin(out);
    add_infinite(step);
    release_values();
    state.add_quad();
    finish_item(state);
  }
  wait_for_stores_read();
}

}  // namespace chorale::kernels
