#include "problem.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "base/float.h"
#include "block.h"
#include "implementations/cuda/split.h"
#include "kernels/params.h"
#include "tensor_map.h"

namespace emulation {
namespace {

using namespace chorale::kernels;

constexpr std::uint16_t nan_16 = 0x7fff;
constexpr int slots_between = 150;  // of packed sequences, which hold NaN

std::size_t index(int x) { return static_cast<std::size_t>(x); }

template <class T>
std::vector<T> filled_with_nan(std::size_t count) {
  std::vector<T> values(count);
  std::memset(values.data(), 0xff, count * sizeof(T));
  return values;
}

}  // namespace

// As a kernel finds it. Slots that hold no key have NaN.
struct Problem::Memory {
  int page_size = 0, slots = 0, stride = 0;  // packed: one page of all slots
  std::vector<int> block_table;
  std::vector<Sequence> sequences;
  std::vector<unsigned char> k, v;
  std::vector<RowBlock> row_blocks;
  std::vector<SplitItem> items = std::vector<SplitItem>(1);
  PlanCounts counts{};
  int partial_slots = 0, arrival_counters = 0;
  ForwardParams params{};

  int pages() const { return page_size == 0 ? 1 : slots / page_size; }
  int slots_of_page() const { return page_size == 0 ? slots : page_size; }
  int slot(int s, int key) const {
    if (page_size == 0) return sequences[index(s)].kv_first + key;
    return block_table[index(s * stride + key / page_size)] * page_size + key % page_size;
  }
};

Problem::Problem(const Kernel& shape, std::vector<Lengths> lengths, std::uint64_t seed,
                 std::vector<int> documents)
    : shape_(shape),
      lengths_(std::move(lengths)),
      seed_(seed),
      documents_(std::move(documents)),
      heads_(kv_heads * shape.group) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (const Lengths& length : lengths_) {
    tokens_ += length.queries;
    rows_ += length.keys;
  }
  q_.resize(index(tokens_ * heads_ * shape.head_dim));
  std::ranges::generate(q_, [&] { return rounded(normal(random)); });
  const auto fill = [&](Cache& cache, int dim, float scale) {
    cache.dim = dim;
    cache.elements.resize(index(rows_ * kv_heads * dim));
    for (int h = 0; shape.fp8_cache && h < kv_heads; ++h)
      cache.scales.push_back(scale * static_cast<float>(h + 1));
    for (std::uint16_t& x : cache.elements)
      x = shape.fp8_cache ? chorale::from_float<chorale::float8_e4m3>(normal(random) / scale).bits
                          : rounded(normal(random));
  };
  fill(k_, shape.head_dim, 0.013f);
  fill(v_, shape.value_dim, 0.0071f);
  for (int h = 0; shape.sinks && h < heads_; ++h) sinks_.push_back(normal(random));
}

std::uint16_t Problem::rounded(float x) const {
  if (std::isnan(x)) return nan_16;
  return shape_.bfloat16 ? chorale::from_float<chorale::bfloat16>(x).bits
                         : chorale::from_float<chorale::float16>(x).bits;
}
float Problem::widened(std::uint16_t element) const {
  return shape_.bfloat16 ? chorale::to_float(chorale::bfloat16{element})
                         : chorale::to_float(chorale::float16{element});
}
// Of an 8-bit cache, what a code stands for (docs/kv_cache.md).
float Problem::value_of(const Cache& cache, int row, int kv_head, int column) const {
  const std::uint16_t element = cache.elements[index((row * kv_heads + kv_head) * cache.dim + column)];
  if (!shape_.fp8_cache) return widened(element);
  const float code = chorale::to_float(chorale::float8_e4m3{static_cast<std::uint8_t>(element)});
  return widened(rounded(code * cache.scales[index(kv_head)]));
}
int Problem::first_token(int sequence) const {
  return std::accumulate(lengths_.begin(), lengths_.begin() + sequence, 0,
                         [](int sum, const Lengths& length) { return sum + length.queries; });
}
int Problem::first_row(int sequence) const {
  return std::accumulate(lengths_.begin(), lengths_.begin() + sequence, 0,
                         [](int sum, const Lengths& length) { return sum + length.keys; });
}
void Problem::set_value(int sequence, int key, int kv_head, int column, float x) {
  const int row = (first_row(sequence) + key) * kv_heads + kv_head;
  v_.elements[index(row * v_.dim + column)] =
      shape_.fp8_cache ? chorale::from_float<chorale::float8_e4m3>(x).bits : rounded(x);
}
void Problem::set_query(int sequence, int query, int head, int column, float x) {
  q_[index(((first_token(sequence) + query) * heads_ + head) * shape_.head_dim + column)] = rounded(x);
}
bool Problem::is_visible(int position, int key) const {
  const auto document = [&](int at) {
    return documents_.empty() ? 0 : documents_[std::min(index(at), documents_.size() - 1)];
  };
  return !shape_.masked || (key <= position && document(key) == document(position));
}

// Packed sequences with gaps, or pages in random order.
Problem::Memory Problem::lay_out(const Kernel& kernel) const {
  Memory memory;
  memory.page_size = kernel.page_size;
  const int size = std::max(kernel.page_size, 1);
  const auto pages_of = [&](const Lengths& length) { return (length.keys + size - 1) / size; };
  int q_first = 0, pages = 0;
  for (const Lengths& length : lengths_) {
    memory.sequences.push_back(
        {q_first, length.queries, kernel.page_size == 0 ? memory.slots : 0, length.keys});
    q_first += length.queries;
    memory.slots += length.keys + slots_between;
    if (kernel.page_size > 0) memory.stride = std::max(memory.stride, pages_of(length));
    pages += pages_of(length);
  }
  if (kernel.page_size > 0) {
    std::vector<int> order(index(pages));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed_));
    memory.block_table.assign(lengths_.size() * index(memory.stride), 1 << 30);
    auto next = order.begin();
    for (std::size_t s = 0; s < lengths_.size(); ++s)
      for (int page = 0; page < pages_of(lengths_[s]); ++page)
        memory.block_table[s * index(memory.stride) + index(page)] = *next++;
    memory.slots = std::max(pages, 1) * size;
  }
  memory.k = pool(kernel, k_, memory);
  memory.v = pool(kernel, v_, memory);
  return memory;
}

std::vector<unsigned char> Problem::pool(const Kernel& kernel, const Cache& cache,
                                         const Memory& memory) const {
  const std::size_t bytes = kernel.fp8_cache ? 1 : 2;
  const auto row_elements = index(kv_heads * cache.dim);
  auto pool = filled_with_nan<unsigned char>(index(memory.slots) * row_elements * bytes);
  for (int s = 0, row = 0; s < sequences(); ++s)
    for (int key = 0; key < keys(s); ++key, ++row)
      for (std::size_t i = 0; i < row_elements; ++i) {
        const int head = static_cast<int>(i) / cache.dim, column = static_cast<int>(i) % cache.dim;
        const std::uint16_t element = kernel.fp8_cache ? cache.elements[index(row) * row_elements + i]
                                                       : rounded(value_of(cache, row, head, column));
        const std::size_t at = index(memory.slot(s, key)) * row_elements + i;
        std::memcpy(pool.data() + at * bytes, &element, bytes);
      }
  return pool;
}

// Boxes of a tile's slots, or of a page's, with so many blocks of 64 columns (params.h).
void Problem::map_cache(const Kernel& kernel, Memory& memory, int key_blocks) const {
  const int slots = memory.slots_of_page(), bytes = kernel.fp8_cache ? 1 : 2;
  const int box = kernel.page_size == 0 ? kernel.tile : std::min(kernel.page_size, kernel.tile);
  const auto map = [&](std::vector<unsigned char>& pool, int dim, int box_blocks, TensorMap& to) {
    const int row = kv_heads * dim;
    const Map::Dimension columns{dim, 1, Map::row_bytes / bytes}, heads{kv_heads, dim},
        of_slots{slots, row, box}, pages{memory.pages(), static_cast<long long>(slots) * row},
        block{64, 1, 64}, blocks{dim / 64, 64, box_blocks};
    if (key_blocks > 1)
      Map(pool.data(), bytes, {block, of_slots, blocks, heads, pages}).write(to);
    else
      Map(pool.data(), bytes, {columns, heads, of_slots, pages}).write(to);
  };
  map(memory.k, shape_.head_dim, key_blocks, memory.params.k);
  map(memory.v, shape_.value_dim,
      value_box_blocks(kernel.value_dim, kernel.fp8_cache, kernel.cluster, key_blocks), memory.params.v);
}

std::optional<Results> Problem::forward(const Kernel& kernel, const Order& order) const {
  Memory memory = lay_out(kernel);
  for (int s = 0; s < sequences(); ++s)
    for (int first = 0; first < lengths_[index(s)].queries; first += kernel.positions)
      memory.row_blocks.push_back({s, first});
  map_cache(kernel, memory, 1);
  return run(kernel, order, memory);
}

std::optional<Results> Problem::decode(const Kernel& kernel, const Order& order) const {
  Memory memory = lay_out(kernel);
  chorale::cuda::SplitSizes sizes;
  for (int s = 0; s < sequences(); ++s) {
    memory.row_blocks.push_back({s, 0});
    sizes.add(chorale::cuda::chunks_of(keys(s), kernel.chunk));
  }
  std::ranges::stable_sort(memory.row_blocks, std::ranges::greater{},
                           [&](const RowBlock& block) { return keys(block.sequence); });
  memory.items.resize(index(sizes.chunks));
  const auto set_whole = [&](SplitItem& item, int i) {
    const int s = memory.row_blocks[index(i)].sequence;
    chorale::cuda::set_whole_item(item, memory.sequences[index(s)], s, 0, kernel.positions, kernel.chunk);
  };
  memory.counts.split_items =
      chorale::cuda::split(sizes, kv_heads, order.multiprocessors, set_whole, memory.items.data());
  memory.partial_slots = sizes.most_slots;
  memory.arrival_counters = sizes.blocks + sizes.most_slots / merge_step;
  map_cache(kernel, memory,
            box_column_blocks(kernel.head_dim, kernel.value_dim, kernel.fp8_cache, kernel.page_size));
  return run(kernel, order, memory);
}

std::optional<Results> Problem::run(const Kernel& kernel, const Order& order, Memory& memory) const {
  ForwardParams& params = memory.params;
  const int q_row = heads_ * kernel.head_dim, out_row = heads_ * kernel.value_dim;
  const long long page_slots = memory.slots_of_page();
  auto q = q_;
  Map(q.data(), 2,
      {{{kernel.head_dim, 1, 64},
        {heads_, kernel.head_dim, kernel.group},
        {tokens_, q_row, kernel.positions}}})
      .write(params.q);
  auto out = filled_with_nan<std::uint16_t>(index(tokens_ * out_row));
  Map(out.data(), 2,
      {{{kernel.value_dim, 1, 64},
        {heads_, kernel.value_dim, kernel.group},
        {tokens_, out_row, std::max(1, forward_warp_rows / kernel.group)}}})
      .write(params.out_boxes);
  params.out = {out.data(), out_row, kernel.value_dim};
  params.k_rows = {memory.k.data(), kv_heads * kernel.head_dim, kernel.head_dim};
  params.v_rows = {memory.v.data(), kv_heads * kernel.value_dim, kernel.value_dim};
  params.k_page_stride = page_slots * kv_heads * kernel.head_dim;
  params.v_page_stride = page_slots * kv_heads * kernel.value_dim;
  auto lse = filled_with_nan<float>(index(tokens_ * heads_));
  params.lse = lse.data();
  params.sinks = kernel.sinks ? sinks_.data() : nullptr;
  params.k_scale = k_.scales.data();
  params.v_scale = v_.scales.data();

  memory.counts.row_blocks = static_cast<int>(memory.row_blocks.size());
  memory.counts.block_table_stride = memory.stride;
  memory.counts.heads_together = 1;
  const TableView table{documents_.data(), nullptr, 1, static_cast<int>(documents_.size())};
  int next_item[2] = {};
  params.plan = {&memory.counts,
                 memory.sequences.data(),
                 memory.row_blocks.data(),
                 memory.items.data(),
                 memory.block_table.data(),
                 &table,
                 next_item};
  params.scale = 1 / std::sqrt(static_cast<float>(kernel.head_dim));
  params.factor = (kernel.scored ? 1 : params.scale) * 1.4426950408889634f;
  params.kv_heads = params.heads = kv_heads;

  const auto states = index(kv_heads * memory.partial_slots * kernel.positions * kernel.group);
  auto partial_out = filled_with_nan<float>(states * index(kernel.value_dim));
  auto partial_reference = filled_with_nan<float>(states), partial_sum = filled_with_nan<float>(states);
  std::vector<int> arrivals(index(kv_heads * memory.arrival_counters));
  params.partial_out = partial_out.data();
  params.partial_reference = partial_reference.data();
  params.partial_sum = partial_sum.data();
  params.arrivals = arrivals.data();
  params.slots = memory.partial_slots;
  params.arrival_counters = memory.arrival_counters;
  params.item_room = static_cast<int>(memory.items.size());

  const std::string failure = run_grid({kernel.threads, order.clusters * kernel.cluster, kernel.cluster},
                                       order.seed, [&] { kernel.run(&params); });
  EXPECT_EQ(failure, "") << "seed " << order.seed;
  if (!failure.empty()) return std::nullopt;
  EXPECT_EQ(next_item[0], 0);
  EXPECT_EQ(next_item[1], 0);
  EXPECT_EQ(std::ranges::count(arrivals, 0), std::ssize(arrivals));
  Results results{std::move(out), {}};
  for (const float x : lse) results.lse.push_back(std::bit_cast<std::uint32_t>(x));
  return results;
}

void Problem::check(const Results& results) const {
  for (int s = 0; s < sequences(); ++s)
    for (int query = 0; query < lengths_[index(s)].queries; ++query)
      for (int head = 0; head < heads_; ++head) {
        check_row(results, s, query, head);
        if (::testing::Test::HasFatalFailure()) return;
      }
}

void Problem::check_row(const Results& results, int s, int query, int head) const {
  const int dim = shape_.head_dim, kv_head = head / shape_.group, first = first_row(s);
  const int position = keys(s) - lengths_[index(s)].queries + query;
  const int token = first_token(s) + query;
  const auto row = index(token * heads_ + head);
  std::vector<double> sum(index(shape_.value_dim));
  double all = shape_.sinks ? std::exp(sinks_[index(head)]) : 0;
  for (int key = 0; key < keys(s); ++key) {
    if (!is_visible(position, key)) continue;
    double score = 0;
    for (int c = 0; c < dim; ++c)
      score += double(widened(q_[row * index(dim) + index(c)])) * value_of(k_, first + key, kv_head, c);
    score /= std::sqrt(static_cast<double>(dim));
    if (shape_.scored) score -= 0.01 * (head + 1) * (position - key);  // program.cuh
    const double p = std::exp(score);
    all += p;
    for (int c = 0; c < shape_.value_dim; ++c) sum[index(c)] += p * value_of(v_, first + key, kv_head, c);
  }
  const std::string where =
      "sequence " + std::to_string(s) + " query " + std::to_string(query) + " head " + std::to_string(head);
  for (int c = 0; c < shape_.value_dim; ++c) {
    const double expected = all == 0 ? 0 : sum[index(c)] / all;
    const float found = widened(results.out[row * index(shape_.value_dim) + index(c)]);
    if (std::isfinite(expected))
      ASSERT_NEAR(found, expected, 0.02) << where << " column " << c;
    else
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(found) : found == static_cast<float>(expected))
          << where << " column " << c << ": " << found << ", not " << expected;
  }
  const auto lse = std::bit_cast<float>(results.lse[row]);
  if (std::isnan(all))
    ASSERT_TRUE(std::isnan(lse)) << where;
  else if (all == 0)
    ASSERT_EQ(lse, -INFINITY) << where;
  else
    ASSERT_NEAR(lse, std::log(all), 0.01) << where;
}

}  // namespace emulation
