// What the host hands to the kernels: plain data, read by both compilers. No standard headers: NVRTC has none.
//
// A plan lives in one block of device memory whose parts keep their addresses from step to step, so that a
// captured graph replays with new lengths and pages. Kernels read every length and count from there; only
// pointers, strides and constants of the problem are launch parameters.
#pragma once

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

// One chunk of keys for one row block: a unit of a split decode.
struct SplitItem {
  int block;       // index into row blocks
  int chunk;       // of Config::chunk keys, counted from the sequence's start
  int first_slot;  // the block's chunk 0 in the workspace of partial states, per KV head
  int chunks;      // of this block: ceil(kv_len / Config::chunk)
};

struct PlanCounts {
  int row_blocks;   // longest first
  int split_items;  // 0: the plan is not split
};

// All pointers are device memory.
struct PlanView {
  const PlanCounts* counts;
  const Sequence* sequences;
  const RowBlock* row_blocks;
  const SplitItem* split_items;
  const int* block_table;  // [sequences, block_table_stride]; null for packed keys
  int block_table_stride;
  int page_size;           // for packed keys: 0
  int* next_item;          // [2] zero before a launch and after it: the next item to take, blocks that are done
};

// Constant arrays of the mask and score programs, in the order in which the emitted code names them.
struct TableView {
  const void* values;    // int or float, row-major
  const void* extremes;  // see the emitted code: least and most of groups of values
  int rows;
  int columns;
};
constexpr int max_tables = 8;

struct Rows {  // a [tokens, heads, dim] tensor whose last dimension is contiguous
  void* data;
  long long token_stride, head_stride;  // elements
};

struct ForwardParams {
  TensorMap q;  // dimensions head_dim, query heads, tokens
  TensorMap k;  // dimensions head_dim, KV heads, slots of a page, pages (packed keys: one page of all tokens)
  TensorMap v;
  Rows out;
  Rows k_rows, v_rows;    // the same memory as k and v: token_stride between slots of a page
  long long k_page_stride, v_page_stride;  // elements
  float* lse;             // [tokens, query heads] or null
  const float* sinks;     // [query heads] or null
  const float* k_scale;   // [KV heads], fp8 caches only
  const float* v_scale;
  PlanView plan;
  TableView tables[max_tables];
  float scale;            // of q . k
  float factor;           // turns a score into a power of two: scale * log2(e), or log2(e) after a score program
  int kv_heads;
  int heads_together;     // KV heads whose blocks run side by side, so that their keys stay in the L2 cache
  int first_query_head;   // what `h` counts from in programs
  // Split decode: partial states, slot = first_slot + chunk, for each KV head in turn.
  float* partial_out;     // [kv_heads, slots, rows, value_dim]
  float* partial_max;     // [kv_heads, slots, rows]
  float* partial_sum;     // [kv_heads, slots, rows]
  int* arrivals;          // [kv_heads, row blocks], zero before and after a launch
  int slots;
};

}  // namespace chorale::kernels
