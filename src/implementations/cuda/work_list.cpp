#include "implementations/cuda/work_list.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "implementations/cuda/block_order.h"
#include "implementations/cuda/order.h"
#include "mask/program.h"

namespace chorale::cuda {
namespace {

// Whether rows see nothing after themselves, as far as two rows tell. It decides only in which order blocks
// run.
bool is_causal(const Problem& problem) {
  if (problem.mask.is_all()) return false;
  const Range heads{problem.first_query_head, problem.first_query_head + problem.query_heads - 1};
  const auto sees_ahead = [&](std::int64_t q) {
    return classify(problem.mask.program(), {{0, 0}, heads, {q, q}, {q + 1, q + (1 << 20)}}) !=
           Coverage::empty;
  };
  return !sees_ahead(0) && !sees_ahead(4096);
}

Split split_blocks(const Problem& problem, const Batch& batch, int chunk, int multiprocessors,
                   const WorkList::Part& decode) {
  std::vector<kernels::SplitItem> blocks;
  blocks.reserve(decode.row_blocks.size());
  for (const kernels::RowBlock& block : decode.row_blocks)
    blocks.push_back(whole_item(device_sequence(batch, block.sequence), block.sequence, block.first,
                                decode.positions, chunk));
  return split(blocks, problem.kv_heads, multiprocessors);
}

}  // namespace

kernels::Sequence device_sequence(const Batch& batch, int sequence) {
  const auto s = static_cast<std::size_t>(sequence);
  return {batch.cu_seqlens_q[s], batch.q_len(sequence), batch.is_paged() ? 0 : batch.cu_seqlens_k[s],
          batch.kv_len(sequence)};
}

WorkList make_work_list(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
                        int least_decode_positions) {
  const int group = problem.group_size();
  const int decode_positions = decode_rows / group;  // at most; 0: heads alone are too many rows
  const auto is_decode = [&](int queries) { return queries <= decode_positions; };
  WorkList work;
  work.forward.positions = std::max(1, block_rows / group);
  work.decode.positions = least_decode_positions;
  for (int s = 0; s < batch.sequences(); ++s)
    if (const int queries = batch.q_len(s); queries > 0 && is_decode(queries))
      work.decode.positions = std::max(work.decode.positions, queries);
  // A power of two, so that few kernels serve all lengths.
  work.decode.positions =
      std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(work.decode.positions))),
               std::max(1, decode_positions));

  std::optional<bool> causal;  // asked where a sequence has several blocks
  const auto cost_of = [&](int queries, int keys, int end) {
    if (end == queries) return keys;
    if (!causal) causal = is_causal(problem);
    return *causal ? std::clamp(keys - queries + end, 0, keys) : keys;
  };
  std::vector<CostedBlock> forward, decode;
  forward.reserve(static_cast<std::size_t>(batch.sequences()));
  decode.reserve(static_cast<std::size_t>(batch.sequences()));
  for (int s = 0; s < batch.sequences(); ++s) {
    const int queries = batch.q_len(s), keys = batch.kv_len(s);
    const bool few = is_decode(queries);
    const WorkList::Part& part = few ? work.decode : work.forward;
    for (int first = 0; first < queries; first += part.positions) {
      const int end = std::min(first + part.positions, queries);
      (few ? decode : forward).push_back({{s, first}, cost_of(queries, keys, end)});
    }
    if (problem.has_kv_scales() && !few)
      for (int tile = 0; tile * order.tile < keys; ++tile) work.key_tiles.push_back({s, tile});
  }
  const auto row_bytes =
      static_cast<std::int64_t>((problem.head_dim + problem.value_dim()) * size_of(problem.dtype));
  work.forward.row_blocks = longest_first_by_sequences(forward, batch, row_bytes);
  work.forward.heads_together = heads_together(forward, problem.kv_heads, multiprocessors);
  work.decode.row_blocks = longest_first(decode);
  work.decode.split = split_blocks(problem, batch, order.chunk, multiprocessors, work.decode);
  return work;
}

std::vector<KernelKey> kernel_keys(const WorkList& work, const Problem& problem, const Order& order,
                                   int page_size) {
  std::vector<KernelKey> keys;
  const auto add = [&](KernelKind kind, const WorkList::Part& part) {
    if (!part.row_blocks.empty()) keys.push_back(kernel_key(kind, problem, order, page_size, part.positions));
  };
  if (problem.has_kv_scales()) add(KernelKind::widen, work.forward);
  add(KernelKind::forward, work.forward);
  add(KernelKind::decode, work.decode);
  return keys;
}

}  // namespace chorale::cuda
