#include "implementations/cuda/work_list.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

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

// Calls f(is_decode, block, cost) for every row block, sequence by sequence. cost: keys that it may see.
template <class F>
void for_each_block(const Problem& problem, const Batch& batch, const WorkSizes& work, F&& f) {
  const int most_decode = most_decode_positions(problem);
  const bool causal = work.forward.blocks > 0 && is_causal(problem);
  for (int s = 0; s < batch.sequences(); ++s) {
    const int queries = batch.q_len(s), keys = batch.kv_len(s);
    if (queries <= most_decode) {
      if (queries > 0) f(true, kernels::RowBlock{s, 0}, keys);
      continue;
    }
    for (int first = 0; first < queries; first += work.forward.positions) {
      const int end = std::min(first + work.forward.positions, queries);
      f(false, kernels::RowBlock{s, first}, causal ? std::clamp(keys - queries + end, 0, keys) : keys);
    }
  }
}

// Where blocks go, longest first, in steps of a 256th of the longest; equal ones as they come. All are
// counted before the first is placed.
class LongestFirst {
 public:
  explicit LongestFirst(int most)
      : most_(std::max(1, most)), scale_(static_cast<float>(steps - 1) / static_cast<float>(most_)) {}
  void count(int cost) { ++first_[step(cost) + 1]; }
  void end_count() { std::partial_sum(first_.begin(), first_.end(), first_.begin()); }
  int place(int cost) { return first_[step(cost)]++; }

 private:
  static constexpr int steps = 256;
  std::size_t step(int cost) const {
    return static_cast<std::size_t>(
        std::min(static_cast<int>(static_cast<float>(most_ - cost) * scale_), steps - 1));
  }

  int most_;
  float scale_;
  std::array<int, steps + 1> first_{};
};

}  // namespace

WorkSizes measure_work(const Problem& problem, const Batch& batch, const Order& order,
                       int least_decode_positions) {
  const int group = problem.group_size(), most_decode = most_decode_positions(problem);
  WorkSizes work;
  work.forward.positions = std::max(1, block_rows / group);
  work.decode.positions = least_decode_positions;
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
  return work;
}

int write_work(const Problem& problem, const Batch& batch, const Order& order, int multiprocessors,
               const WorkSizes& work, const WorkList& to) {
  LongestFirst forward(work.forward.most_keys), decode(work.decode.most_keys);
  for_each_block(problem, batch, work, [&](bool is_decode, kernels::RowBlock, int cost) {
    (is_decode ? decode : forward).count(cost);
  });
  forward.end_count();
  decode.end_count();
  kernels::KeyTile* tile = to.key_tiles;
  for_each_block(problem, batch, work, [&](bool is_decode, kernels::RowBlock block, int cost) {
    (is_decode ? to.decode[decode.place(cost)] : to.forward[forward.place(cost)]) = block;
    if (is_decode || block.first > 0 || !problem.has_kv_scales()) return;
    const int keys = batch.kv_len(block.sequence);
    for (int number = 0; number * order.tile < keys; ++number) *tile++ = {block.sequence, number};
  });
  const auto set_whole = [&](kernels::SplitItem& item, int i) {
    const int s = to.decode[i].sequence;
    set_whole_item(item, device_sequence(batch, s), s, 0, work.decode.positions, order.chunk);
  };
  return split(work.split, problem.kv_heads, multiprocessors, set_whole, to.split_items);
}

std::vector<KernelKey> kernel_keys(const WorkSizes& work, const Problem& problem, const Order& order,
                                   int page_size) {
  std::vector<KernelKey> keys;
  const auto add = [&](KernelKind kind, const WorkSizes::Part& part) {
    if (part.blocks > 0) keys.push_back(kernel_key(kind, problem, order, page_size, part.positions));
  };
  if (problem.has_kv_scales()) add(KernelKind::widen, work.forward);
  add(KernelKind::forward, work.forward);
  add(KernelKind::decode, work.decode);
  return keys;
}

}  // namespace chorale::cuda
