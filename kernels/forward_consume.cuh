// The forward kernel's consumers: products, softmax, output.
#pragma once

#include "forward_memory.cuh"
#include "softmax.cuh"
#include "visibility.cuh"
#include "wgmma.cuh"

namespace chorale::kernels {

constexpr int score_count = Config::tile / 2;     // scores of a thread: two rows
constexpr int out_count = Config::value_dim / 2;  // outputs of a thread
using Scores = Wgmma<Config::tile, Config::bfloat16>;
using Outputs = Wgmma<Config::value_dim, Config::bfloat16>;

// The two rows of a thread, `row` and `row` + 8 of its row block.
struct ThreadRows {
  int warpgroup, row, quad_lane;
  __device__ explicit ThreadRows(int warpgroup)
      : warpgroup(warpgroup),
        row(warpgroup * 64 + static_cast<int>(threadIdx.x % 128) / 32 * 16 +
            static_cast<int>(threadIdx.x % 32) / 4),
        quad_lane(threadIdx.x % 4) {}
  __device__ int of(int i) const { return row + 8 * i; }
};

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

// Score and mask programs, and the sequence's end.
__device__ __forceinline__ void apply_programs(float (&scores)[score_count], const ForwardParams& params,
                                               const Item& item, const ThreadRows& rows, Step step) {
  const bool is_partial = (step.flags & Step::partial) != 0;
  if (!Config::scored && !is_partial) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = rows.of(r);
    const int q = item.q_position + row / Config::group;
    const int h = params.first_query_head + item.kv_head * Config::group + row % Config::group;
#pragma unroll
    for (int i = 0; i < score_count / 4; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int k = step.tile * Config::tile + 8 * i + 2 * rows.quad_lane + e;
        float& score = scores[4 * i + 2 * r + e];
        score = finished_score(params, score, item.sequence, item.kv_len, h, q, k, is_partial);
      }
  }
}

// The largest score of each of a thread's rows.
__device__ __forceinline__ void find_maxima(const float (&scores)[score_count], float (&largest)[2]) {
  constexpr int chains = 4;  // side by side: one would wait for itself at every step
  float chain[2][chains];
#pragma unroll
  for (int i = 0; i < score_count / 4; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float x = fmaxf(scores[4 * i + 2 * r], scores[4 * i + 2 * r + 1]);
      chain[r][i % chains] = i < chains ? x : fmaxf(chain[r][i % chains], x);
    }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    largest[r] = fmaxf(fmaxf(chain[r][0], chain[r][1]), fmaxf(chain[r][2], chain[r][3]));
#pragma unroll
  for (int lanes = 1; lanes <= 2; lanes *= 2)
#pragma unroll
    for (int r = 0; r < 2; ++r) largest[r] = fmaxf(largest[r], __shfl_xor_sync(~0u, largest[r], lanes));
}

// The state of a thread's two rows.
struct Softmax {
  float maximum[2], sum[2];  // the sum over this thread's columns

  __device__ __forceinline__ void reset() {
    maximum[0] = maximum[1] = -infinity;
    sum[0] = sum[1] = 0.f;
  }
  // Takes a tile in: scores become probabilities. `rescale` is what the output is to be multiplied by.
  __device__ __forceinline__ void take(float (&scores)[score_count], const float (&largest)[2], float factor,
                                       float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = maximum[r];
      maximum[r] = fmaxf(before, largest[r]);
      rescale[r] = rescale_factor(before, maximum[r], factor);
    }
    float even[2], odd[2];
    const float exponent[2] = {negative_exponent(maximum[0], factor), negative_exponent(maximum[1], factor)};
#pragma unroll
    for (int i = 0; i < score_count / 4; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float &x = scores[4 * i + 2 * r], &y = scores[4 * i + 2 * r + 1];
        x = probability(x, factor, exponent[r]);
        y = probability(y, factor, exponent[r]);
        even[r] = i == 0 ? x : __fadd_rn(even[r], x);
        odd[r] = i == 0 ? y : __fadd_rn(odd[r], y);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] = __fmaf_rn(sum[r], rescale[r], __fadd_rn(even[r], odd[r]));
  }
  // The sums of whole rows.
  __device__ __forceinline__ void add_quad() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = __fadd_rn(sum[r], __shfl_xor_sync(~0u, sum[r], 1));
      sum[r] = __fadd_rn(sum[r], __shfl_xor_sync(~0u, sum[r], 2));
    }
  }
};

__device__ __forceinline__ void pack(u32 (&p)[score_count / 2], const float (&scores)[score_count]) {
#pragma unroll
  for (int i = 0; i < score_count / 2; ++i)
    p[i] = Config::bfloat16 ? pack_bfloat16(scores[2 * i], scores[2 * i + 1])
                            : pack_float16(scores[2 * i], scores[2 * i + 1]);
}

__device__ __forceinline__ void multiply(float (&out)[out_count], const float (&by)[2]) {
#pragma unroll
  for (int i = 0; i < out_count; ++i) out[i] = __fmul_rn(out[i], by[i / 2 % 2]);
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
      const int row = rows.of(r);
      visible[r] =
          program_visible(params.plan.tables, item.sequence,
                          params.first_query_head + item.kv_head * Config::group + row % Config::group,
                          item.q_position + row / Config::group, k);
    }
    const SlotPlace place = find_slot(params.plan, item, k);
    const u16* values = static_cast<const u16*>(params.v_rows.data) + place.page * params.v_page_stride +
                        place.slot * params.v_rows.token_stride + item.kv_head * params.v_rows.head_stride +
                        2 * rows.quad_lane;
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

// States of whole rows that are not needed for a while wait in shared memory: registers are scarce. A warp
// keeps those of its own rows.
__device__ __forceinline__ void keep(RowState (&kept)[forward_rows], const ThreadRows& rows,
                                     const Softmax& state) {
  __syncwarp();  // all have read what was there
  if (rows.quad_lane == 0)
#pragma unroll
    for (int r = 0; r < 2; ++r) kept[rows.of(r)] = {state.maximum[r], state.sum[r]};
  __syncwarp();
}
__device__ __forceinline__ Softmax kept(const RowState (&kept)[forward_rows], const ThreadRows& rows) {
  const RowState a = kept[rows.of(0)], b = kept[rows.of(1)];
  return {{a.maximum, b.maximum}, {a.sum, b.sum}};
}

// total = merge(total, chunk) for the states of rows; outputs follow by the weights.
__device__ __forceinline__ void merge_states(Softmax& total, const Softmax& chunk, float factor,
                                             MergeWeights (&weights)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    weights[r] = merge_weights(total.maximum[r], chunk.maximum[r], factor);
    total.maximum[r] = weights[r].maximum;
    total.sum[r] = merge(total.sum[r], chunk.sum[r], weights[r]);
  }
}

// Divides, rounds and stores the 64 rows of a warpgroup, through shared memory so that rows leave whole.
// Every warp has its own 16 rows there.
__device__ __forceinline__ void store(const float (&out)[out_count], const Softmax& state,
                                      const ForwardParams& params, const Item& item, const ThreadRows& rows,
                                      unsigned char* buffer) {
  const auto is_real = [&](int row) { return row < Config::rows && row / Config::group < item.positions; };
  const auto head_of = [&](int row) { return item.kv_head * Config::group + row % Config::group; };
  RowEnd end[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = rows.of(r);
    const float sink = Config::sinks && is_real(row) ? params.sinks[head_of(row)] : -infinity;
    end[r] = row_end(state.maximum[r], state.sum[r], params.factor, sink);
  }
  const int lane = threadIdx.x % 32, first = rows.row - lane / 4;  // the warp's first row
  const auto place = [&](int row, int piece) {                     // of 8 columns
    return piece / 8 * (forward_rows * block_row_bytes) + row * block_row_bytes +
           ((piece % 8) ^ (row % 8)) * 16;
  };
#pragma unroll
  for (int i = 0; i < out_count / 8; ++i) {  // 16 columns
    u32 d[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float x = finished(out[8 * i + 2 * j], end[j % 2].factor);
      const float y = finished(out[8 * i + 2 * j + 1], end[j % 2].factor);
      d[j] = Config::bfloat16 ? pack_bfloat16(x, y) : pack_float16(x, y);
    }
    store_matrices(shared_address(buffer) + place(first + lane % 16, 2 * i + lane / 16), d[0], d[1], d[2],
                   d[3]);
  }
  fence_proxy_async();  // the copy engine writes there next; before the stores below, since it waits for all
                        // stores
  __syncwarp();
  constexpr int pieces = Config::value_dim / 8;  // in a row
  constexpr int together = 4;                    // of a thread: on their way at once
#pragma unroll
  for (int i = 0; i < pieces / 2; i += together) {
    const auto row_of = [&](int j) { return first + (32 * (i + j) + lane) / pieces; };
    const auto piece_of = [&](int j) { return (32 * (i + j) + lane) % pieces; };
    uint4 data[together];
#pragma unroll
    for (int j = 0; j < together; ++j)
      data[j] = *reinterpret_cast<const uint4*>(buffer + place(row_of(j), piece_of(j)));
#pragma unroll
    for (int j = 0; j < together; ++j)
      if (const int row = row_of(j); is_real(row))
        store_16_bytes(static_cast<u16*>(params.out.data) +
                           (item.q_row + row / Config::group) * params.out.token_stride +
                           head_of(row) * params.out.head_stride + piece_of(j) * 8,
                       data[j]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (const int row = rows.of(r); params.lse != nullptr && rows.quad_lane == 0 && is_real(row))
      params
          .lse[static_cast<long long>(item.q_row + row / Config::group) * (params.kv_heads * Config::group) +
               head_of(row)] = end[r].lse;
}

// Before the step's keys are released, and with them this.
__device__ __forceinline__ Step read_step(const ForwardMemory& shared, int index) {
  return {uniform(shared.step[index].flags), uniform(shared.step[index].tile)};
}

__device__ void consume(const ForwardParams& params, ForwardMemory& shared, int warpgroup) {
  const ThreadRows rows(warpgroup);
  const bool speaks = threadIdx.x % 32 == 0;  // for its warp
  const u32 own_rows = warpgroup * 64 * block_row_bytes;
  ItemTurn item;
  KeyTurn key;
  ValueTurn value;
  if (warpgroup == 1) pass_turn(1);

  float out[out_count], scores[score_count], largest[2], rescale[2];
  float total[out_count];  // of the chunks that have ended
  u32 p[score_count / 2];
  Softmax state;
  const auto start_item = [&] {
    Softmax none;
    none.reset();
    keep(shared.total, rows, none);
#pragma unroll
    for (float& x : total) x = 0.f;
  };
  const auto finish_item = [&](const Softmax& last) {
    MergeWeights weights[2];
    Softmax all = kept(shared.total, rows);
    merge_states(all, last, params.factor, weights);
#pragma unroll
    for (int i = 0; i < out_count; ++i) out[i] = merge(total[i], out[i], weights[i / 2 % 2]);
    store(out, all, params, shared.item[item.index], rows, shared.query[item.index]);
    __syncwarp();
    if (speaks) mbarrier_arrive(&shared.item_free[item.index]);
  };
  // P V of `step` has been issued: waits for it and releases the values.
  const auto finish_values = [&](Step step) {
    wgmma_wait<0>();
    pin(out);
    if constexpr (Config::masked)
      if ((step.flags & Step::partial) != 0 && uniform(shared.infinite[value.index].any))
        add_infinite_values(out, p, params, shared.item[item.index], rows, step.tile,
                            shared.infinite[value.index]);
    if (speaks) mbarrier_arrive(&shared.value_free[value.index]);
    value.next();
  };
  state.reset();
  start_item();

  // The first tile of all has nothing to run beside.
  mbarrier_wait(&shared.item_full[item.index], item.parity);
  if (uniform(shared.item[item.index].sequence) < 0) return;
  mbarrier_wait(&shared.key_full[key.index], key.parity);
  Step step = read_step(shared, key.index);
  multiply_keys(scores, shared_address(shared.query[item.index]) + own_rows,
                shared_address(shared.key[key.index]));
  wgmma_wait<0>();
  pin(scores);
  if (speaks) mbarrier_arrive(&shared.key_free[key.index]);
  key.next();
  apply_programs(scores, params, shared.item[item.index], rows, step);
  find_maxima(scores, largest);
  state.take(scores, largest, params.factor, rescale);
  pack(p, scores);

  // `step` has its probabilities in p; `following`, of the same item or the next, gets them beside step's P
  // V.
  for (bool fresh = true;;) {
    const bool item_ends = (step.flags & Step::last) != 0;
    const bool chunk_ends = (step.flags & Step::chunk_end) != 0;
    ItemTurn of_following = item;
    if (item_ends) {
      of_following.next();
      mbarrier_wait(&shared.item_full[of_following.index], of_following.parity);
      if (uniform(shared.item[of_following.index].sequence) < 0) {
        mbarrier_wait(&shared.value_safe[value.index], value.parity);
        multiply_values(out, p, shared_address(shared.value[value.index]), fresh);
        finish_values(step);
        state.add_quad();
        finish_item(state);
        return;
      }
    }
    mbarrier_wait(&shared.key_full[key.index], key.parity);
    wait_for_turn(warpgroup);
    multiply_keys(scores, shared_address(shared.query[of_following.index]) + own_rows,
                  shared_address(shared.key[key.index]));
    mbarrier_wait(&shared.value_safe[value.index], value.parity);
    multiply_values(out, p, shared_address(shared.value[value.index]), fresh);
    pass_turn(warpgroup);
    const Step following = read_step(shared, key.index);
    fresh = item_ends || chunk_ends;
    if (fresh) {
      state.add_quad();
      keep(shared.ended, rows, state);
      state.reset();
    }
    wgmma_wait<1>();
    pin(scores);
    if (speaks) mbarrier_arrive(&shared.key_free[key.index]);
    key.next();
    apply_programs(scores, params, shared.item[of_following.index], rows, following);
    find_maxima(scores, largest);
    finish_values(step);  // P V has ended by now, or nearly
    state.take(scores, largest, params.factor, rescale);
    pack(p, scores);
    // Beside the exponentials. A state that has just ended is as it is: times 1.
    multiply(out, {fresh ? 1.f : rescale[0], fresh ? 1.f : rescale[1]});
    if (item_ends) {
      finish_item(kept(shared.ended, rows));
      start_item();
    } else if (chunk_ends) {
      MergeWeights weights[2];
      Softmax all = kept(shared.total, rows);
      merge_states(all, kept(shared.ended, rows), params.factor, weights);
      keep(shared.total, rows, all);
#pragma unroll
      for (int i = 0; i < out_count; ++i) total[i] = merge(total[i], out[i], weights[i / 2 % 2]);
    }
    item = of_following;
    step = following;
  }
}

}  // namespace chorale::kernels
