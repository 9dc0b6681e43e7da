// What the host hands to the kernels: plain data, read by both compilers. No standard headers: NVRTC has
// none.
//
// A plan lives in one block of device memory whose parts keep their addresses from step to step, so that a
// captured graph replays with new lengths and pages. Kernels read every length and count from there; only
// pointers, strides and constants of the problem are launch parameters.
//
// Before a kernel's sources the host puts the constants of config.cuh, this file, and "program.cuh", which is
// no file here: it is made of the mask and the score (src/mask/emit_cuda.h), with h counted from
// ForwardParams::first_query_head and `tables` = PlanView::tables:
//     struct RowValues { static constexpr int count; int v[...]; };
//     struct KeyValues { static constexpr int count; int v[...]; };
//     RowValues program_rows(tables, int b, int h, int q);
//     KeyValues program_keys(tables, int b, int k);
//           what the next two read of tables by the row alone, once for all keys, or the other way round
//     bool  program_visible(tables, int b, int h, int q, int k, const RowValues&, const KeyValues&);
//     float program_score(tables, float score, float scale, int b, int h, int q, int k, const RowValues&,
//                         const KeyValues&);
//           what the program calls the score is score * scale
//     int   program_coverage(tables, int b, int h_first, int h_last, int q_first, int q_last,
//                            int k_first, int k_last);
//           0: no pair of the box is visible, 2: all are, 1: not known
//
// Entry points are extern "C" and named chorale_forward, chorale_decode, chorale_widen,
// chorale_store and chorale_copy_pages. Each file says how it is to be launched (smem: dynamic shared memory;
// overlaps: it may begin before the launch before it has ended, and waits for that with griddepcontrol):
//     extern "C" __device__ const int chorale_forward_threads = 384, chorale_forward_smem = bytes;
//     extern "C" __device__ const int chorale_decode_overlaps = 1;
#pragma once

#ifdef __CUDACC__
#define CHORALE_HOST_DEVICE __host__ __device__
#else
#define CHORALE_HOST_DEVICE
#endif

namespace chorale::kernels {

// An opaque CUtensorMap: how the copy engine finds a box of a tensor.
struct alignas(64) TensorMap {
  unsigned char opaque[128];
};

struct Sequence {
  int q_first;   // row of its first query in q, out and lse
  int q_len;     // query rows
  int kv_first;  // packed keys: row of its first key; paged: 0
  int kv_len;    // keys; the last query stands at the last key
};

// Query positions first to first + Config::positions - 1 of one sequence, with all heads of a KV head.
struct RowBlock {
  int sequence;
  int first;  // query row within the sequence
};

// Consecutive chunks of keys for one row block, a unit of a split decode: everything there is to know, so
// that the first copy waits for one load. Chunks from the sequence's start are merged on the way, as a
// forward does it; any other is an item, and a state, of its own.
struct alignas(16) SplitItem {
  int sequence;
  int q_row;       // the row block's first row of q, out and lse
  int positions;   // query positions in use, at most Config::positions
  int q_position;  // logical position of the first
  int kv_first;    // packed keys: row of the sequence's first key; paged: 0
  int kv_len;
  int first_chunk, chunks;  // of Config::chunk keys, counted from the sequence's start
  int state, states;        // which of the row block's partial states this is: 0 has chunk 0
  int first_slot;           // state 0 in the workspace of partial states, per KV head
  int first_counter;        // of arrivals, per KV head
};

// Config::tile keys of a sequence, counted from its start: a unit of widening.
struct KeyTile {
  int sequence;
  int number;
};

// Read from device memory, like everything that changes from step to step.
struct PlanCounts {
  int row_blocks;          // in the order in which they are taken
  int split_items;         // 0: the plan is not split
  int block_table_stride;  // pages a row; packed keys: 0
  int key_tiles;           // to widen
  int heads_together;  // of a launch, the last so many KV heads whose row blocks are taken in turn; before
                       // them one head's after another's
};

// Constant arrays of the mask and score programs, in the order in which the emitted code names them. An array
// of one dimension is one row.
struct TableView {
  const void* values;    // int or float, row-major
  const void* extremes;  // of integers: a tree of ranges for each row (program_math.cuh)
  int rows;
  int columns;
};
constexpr int max_tables = 8;

// Partial states are merged in steps of so many as they become complete. Step i of a row block counts
// arrivals in counter first_counter + i of its KV head, which no other row block has: states / merge_step + 1
// are enough.
constexpr int merge_step = 31;

// All pointers are device memory.
struct PlanView {
  const PlanCounts* counts;
  const Sequence* sequences;
  const RowBlock* row_blocks;
  const SplitItem* split_items;  // room for at least one
  const int* block_table;        // [sequences, block_table_stride]
  const TableView* tables;       // of the mask, then of the score
  int* next_item;  // [2] zero before a launch and after it: the next item to take, blocks that are done
};

struct Rows {  // a [tokens, heads, dim] tensor whose last dimension is contiguous
  void* data;
  long long token_stride, head_stride;  // elements
};

// Pages of so few slots are brought by threads, where the copy engine would spend its time on boxes.
constexpr int most_slots_by_threads = 4;
// A box of the decode kernel takes so many of a head's blocks of 64 columns side by side. Where that is more
// than one its maps of k and v are of five dimensions: 64 columns, slots of a page, blocks, KV heads, pages;
// box 64, the lesser of Config::tile and the page size, so many, 1, 1.
CHORALE_HOST_DEVICE constexpr int box_column_blocks(int head_dim, int value_dim, bool fp8_cache,
                                                    int page_size) {
  const bool by_threads = page_size > 0 && page_size <= most_slots_by_threads;
  return !fp8_cache && !by_threads && head_dim % 128 == 0 && value_dim % 128 == 0 ? 2 : 1;
}
// Of values, a block of a cluster brings the blocks of columns that it multiplies, where they can be dealt
// out, or else all.
CHORALE_HOST_DEVICE constexpr int brought_value_blocks(int value_dim, bool fp8_cache, int cluster) {
  const int block = fp8_cache ? 128 : 64, blocks = (value_dim + block - 1) / block;
  return blocks % cluster == 0 ? blocks / cluster : blocks;
}
// Its boxes of values have as many blocks as those of keys, or where that is too many, one.
CHORALE_HOST_DEVICE constexpr int value_box_blocks(int value_dim, bool fp8_cache, int cluster,
                                                   int key_box_blocks) {
  return brought_value_blocks(value_dim, fp8_cache, cluster) % key_box_blocks == 0 ? key_box_blocks : 1;
}

// Rows that a warp of the forward kernel has, whose outputs are a box where they make whole positions.
constexpr int forward_warp_rows = 16;

struct ForwardParams {
  // Boxes have rows of 128 bytes, swizzled (CU_TENSOR_MAP_SWIZZLE_128B); what lies outside of the tensor is
  // zero.
  TensorMap q;          // dimensions head_dim, query heads, tokens; box 64, Config::group, Config::positions
  TensorMap k;          // dimensions head_dim, KV heads, slots of a page, pages (packed keys: one page of all
                        // tokens); box 64 (fp8: 128), 1, the lesser of Config::tile and the page size, 1
  TensorMap v;          // the same with value_dim
  TensorMap out_boxes;  // the forward kernel's, where forward_warp_rows is a multiple of Config::group:
                        // dimensions value_dim, query heads, tokens; box 64, Config::group, forward_warp_rows
                        // / Config::group
  Rows out;             // the same memory
  Rows k_rows, v_rows;  // the same memory as k and v: token_stride between slots of a page
  long long k_page_stride, v_page_stride;  // elements
  float* lse;                              // [tokens, query heads] or null
  const float* sinks;                      // [query heads] or null
  const float* k_scale;                    // [KV heads], fp8 caches only
  const float* v_scale;
  PlanView plan;
  float scale;   // of q . k
  float factor;  // turns a score into a power of two: scale * log2(e), or log2(e) after a score program
  int kv_heads;  // of the problem: so many groups a row of lse has
  int heads;     // KV heads of this launch; its tensors, lse too, begin with the first of them
  int first_query_head;  // what `h` counts from in programs
  // Split decode: partial states, slot = first_slot + chunk, for each KV head in turn.
  float* partial_out;        // [kv_heads, slots, rows, value_dim]
  float* partial_reference;  // [kv_heads, slots, rows]
  float* partial_sum;        // [kv_heads, slots, rows]
  int* arrivals;             // [kv_heads, arrival_counters], zero before and after a launch
  int slots;
  int arrival_counters;
  int item_room;  // split items that may be read, whatever their number is
};

// 8-bit keys and values to what they stand for, for a forward that follows. Tile i of the list goes to the
// rows from i T on.
struct WidenParams {
  Rows k, v;                               // codes, of one page: token_stride lies between its slots
  long long k_page_stride, v_page_stride;  // elements
  const float* k_scale;                    // [KV heads]
  const float* v_scale;
  Rows k_wide, v_wide;   // [counts->key_tiles T, KV heads, dim], of the problem's type
  const KeyTile* tiles;  // [counts->key_tiles]
  PlanView plan;
  int heads;             // KV heads of this launch
  int first_query_head;  // what `h` counts from in programs
};

}  // namespace chorale::kernels
