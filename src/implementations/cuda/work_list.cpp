#include "implementations/cuda/work_list.h"

#include <algorithm>
#include <bit>

#include "implementations/cuda/block_order.h"
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

// At most so many query positions of a sequence are a decode's, whose row block has them all. 0: heads alone
// are too many rows.
int most_decode_positions(const Problem& problem) { return decode_rows / problem.group_size(); }

// Of the forward's sequences, one after another.
std::vector<CostedBlock> forward_blocks(const Problem& problem, const Batch& batch, const WorkSizes& work) {
  std::vector<CostedBlock> blocks;
  if (work.forward.blocks == 0) return blocks;
  blocks.reserve(static_cast<std::size_t>(work.forward.blocks));
  const bool causal = is_causal(problem);
  for (int s = 0; s < batch.sequences(); ++s) {
    const int queries = batch.q_len(s), keys = batch.kv_len(s);
    if (queries <= most_decode_positions(problem)) continue;
    for (int first = 0; first < queries; first += work.forward.positions) {
      const int end = std::min(first + work.forward.positions, queries);
      blocks.push_back({{s, first}, causal ? std::clamp(keys - queries + end, 0, keys) : keys});
    }
  }
  return blocks;
}

// A sequence that decodes is one row block, longest first.
void write_decode_blocks(const Problem& problem, const Batch& batch, const WorkSizes& work,
                         kernels::RowBlock* to) {
  const int most_positions = most_decode_positions(problem);
  const auto for_each_sequence = [&](auto&& f) {
    for (int s = 0; s < batch.sequences(); ++s)
      if (const int queries = batch.q_len(s); queries > 0 && queries <= most_positions) f(s, batch.kv_len(s));
  };
  LongestFirst order(work.decode.most_keys);
  for_each_sequence([&](int, int keys) { order.count(keys); });
  order.end_count();
  for_each_sequence([&](int s, int keys) { to[order.place(keys)] = {s, 0}; });
}

void write_key_tiles(const Problem& problem, const Batch& batch, const Order& order, kernels::KeyTile* to) {
  for (int s = 0; s < batch.sequences(); ++s)
    if (batch.q_len(s) > most_decode_positions(problem))
      for (int number = 0; number * order.tile < batch.kv_len(s); ++number) *to++ = {s, number};
}

}  // namespace

WorkSizes measure_work(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
                       DecodeShape least) {
  const int group = problem.group_size(), most_decode = most_decode_positions(problem);
  WorkSizes work;
  work.forward.positions = std::max(1, block_rows / group);
  work.decode.positions = least.positions;
  for (int s = 0; s < batch.sequences(); ++s) {
    const int queries = batch.q_len(s), keys = batch.kv_len(s);
    if (queries == 0) continue;
    const bool is_decode = queries <= most_decode;
    WorkSizes::Part& part = is_decode ? work.decode : work.forward;
    part.most_keys = std::max(part.most_keys, keys);
    if (is_decode) {
      part.positions = std::max(part.positions, queries);
      ++part.blocks;
      work.split.add(chunks_of(keys, order.chunk));
    } else {
      part.blocks += (queries - 1) / part.positions + 1;
      if (problem.has_kv_scales()) work.key_tiles += (keys + order.tile - 1) / order.tile;
    }
  }
  // A power of two, so that few kernels serve all lengths.
  work.decode.positions =
      std::min(static_cast<int>(std::bit_ceil(static_cast<unsigned>(work.decode.positions))),
               std::max(1, most_decode));
  work.cluster =
      least.cluster > 0 ? least.cluster : cluster_for(work.split, problem.kv_heads, multiprocessors);
  return work;
}

WorkCounts write_work(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
                      const WorkSizes& work, const WorkList& to) {
  const std::vector<CostedBlock> forward = forward_blocks(problem, batch, work);
  const auto row_bytes =
      static_cast<std::int64_t>((problem.head_dim + problem.value_dim()) * size_of(problem.dtype));
  write_in_order(forward, batch, row_bytes, to.forward);
  if (problem.has_kv_scales()) write_key_tiles(problem, batch, order, to.key_tiles);
  write_decode_blocks(problem, batch, work, to.decode);
  const auto set_whole = [&](kernels::SplitItem& item, int i) {
    const int s = to.decode[i].sequence;
    set_whole_item(item, device_sequence(batch, s), s, 0, work.decode.positions, order.chunk);
  };
  return {split(work.split, problem.kv_heads, multiprocessors / work.cluster, set_whole, to.split_items),
          heads_together(forward, problem.kv_heads, multiprocessors)};
}

std::vector<KernelKey> kernel_keys(const WorkSizes& work, const Problem& problem, const Order& order,
                                   int page_size) {
  std::vector<KernelKey> keys;
  const auto add = [&](KernelKind kind, const WorkSizes::Part& part) {
    if (part.blocks > 0) keys.push_back(kernel_key(kind, problem, order, page_size, work.decode_shape()));
  };
  if (problem.has_kv_scales()) add(KernelKind::widen, work.forward);
  add(KernelKind::forward, work.forward);
  add(KernelKind::decode, work.decode);
  return keys;
}

}  // namespace chorale::cuda
