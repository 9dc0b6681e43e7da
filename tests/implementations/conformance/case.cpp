#include "implementations/conformance/case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>

#include "base/float.h"
#include "base/threads.h"
#include "mask/program.h"

namespace chorale::conformance {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

enum class Kind : std::uint64_t { q = 1, k, v, grad_out, sink };

std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Zero mean, unit variance, from a coordinate alone (Box and Muller).
float normal(std::uint64_t seed, Kind kind, std::uint64_t content, std::int64_t position, int head,
             int column) {
  std::uint64_t key = mix(seed ^ (static_cast<std::uint64_t>(kind) << 56));
  for (const std::uint64_t part :
       {content, static_cast<std::uint64_t>(position), static_cast<std::uint64_t>(head)}) {
    key = mix(key ^ part);
  }
  key = mix(key ^ static_cast<std::uint64_t>(column));
  const double x = static_cast<double>((key >> 32) + 1) * 0x1p-32;  // (0, 1]
  const double y = static_cast<double>(key & 0xffffffffu) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2 * std::log(x)) * std::cos(2 * std::numbers::pi * y));
}

// The values of one case.
class Values {
 public:
  explicit Values(const Case& test) : test_(test) {}

  float query(const Sequence& s, std::int64_t position, int head, int column) const {
    if (test_.fill == Fill::zero_queries) return 0;
    if (test_.fill == Fill::dominant_key && column == 0) return 1;
    if (test_.fill == Fill::nan_queries && position == s.keys - 1 - s.queries / 2 && column == 0) return nan;
    return large() * at(Kind::q, s, position, head, column);
  }
  float key(const Sequence& s, std::int64_t position, int head, int column) const {
    if (test_.fill == Fill::dominant_key && column == 0)
      return position == dominant(s, head) ? 16384.0f : 0.0f;
    if (test_.fill == Fill::nan_inside && position == s.keys / 2 && column == 0) return nan;
    return large() * at(Kind::k, s, position, head, column);
  }
  float value(const Sequence& s, std::int64_t position, int head, int column) const {
    if (test_.fill == Fill::unit_values) return 1;
    if (test_.fill == Fill::nan_inside && position == s.keys / 3 && column == 0) return nan;
    if (test_.fill == Fill::nan_inside && position == s.keys / 4 && column == test_.problem.value_dim() - 1)
      return infinity;
    return at(Kind::v, s, position, head, column);
  }
  float grad_out(const Sequence& s, std::int64_t position, int head, int column) const {
    if (test_.fill == Fill::nan_queries && position == s.keys - s.queries && column == 0) return nan;
    return at(Kind::grad_out, s, position, head, column);
  }
  float sink(int head) const { return normal(test_.seed, Kind::sink, 0, 0, head, 0); }

 private:
  float at(Kind kind, const Sequence& s, std::int64_t position, int head, int column) const {
    return normal(test_.seed, kind, s.content, position, head, column);
  }
  float large() const { return test_.fill == Fill::large_scores ? 30.0f : 1.0f; }
  std::int64_t dominant(const Sequence& s, int head) const {
    return s.keys == 0 ? 0
                       : static_cast<std::int64_t>((mix(s.content) + 7 * static_cast<std::uint64_t>(head)) %
                                                   static_cast<std::uint64_t>(s.keys));
  }
  const Case& test_;
};

// Dimensions from the slowest to the fastest. Heads are the last but one.
std::vector<int> memory_order(int rank, Arrangement arrangement) {
  std::vector<int> order(static_cast<std::size_t>(rank));
  std::iota(order.begin(), order.end(), 0);
  if (arrangement == Arrangement::heads_first && rank >= 3)
    std::swap(order[order.size() - 2], order[order.size() - 3]);
  if (arrangement == Arrangement::columns_first) std::rotate(order.begin(), order.end() - 1, order.end());
  return order;
}

float poison(std::int64_t i) {
  constexpr float kinds[] = {nan, infinity, -infinity, 3e38f};
  return kinds[i % 4];
}

std::int64_t offset(const TensorView& view, std::initializer_list<std::int64_t> index) {
  std::int64_t sum = 0;
  int dimension = 0;
  for (const std::int64_t i : index) sum += i * view.stride[dimension++];
  return sum;
}

void put(const TensorView& view, std::initializer_list<std::int64_t> index, float value) {
  store_element(view.data, view.dtype, offset(view, index), value);
}

// A key that no query of its group sees: nothing may depend on it. Most masks show it to its own position, so
// that one is asked first.
bool hidden(const Case& test, const Problem& bound, int sequence, int kv_head, std::int64_t position) {
  const Sequence& s = test.sequences[static_cast<std::size_t>(sequence)];
  const int group = bound.group_size();
  const std::int64_t first = s.keys - s.queries, own = std::max<std::int64_t>(0, position - first);
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t i = 0; i < s.queries; ++i) {
      const std::int64_t row = (own + i) % s.queries;
      if (evaluate_mask(bound.mask.program(),
                        {sequence, bound.first_query_head + head, first + row, position})) {
        return false;
      }
    }
  }
  return true;
}

// Block tables over a pool in random order, a few pages of which nobody owns.
struct Pages {
  std::vector<std::vector<std::int32_t>> tables;
  std::int64_t pool = 0;
};
Pages deal_pages(const Case& test) {
  if (test.page_size == 0) return {};
  const auto pages_of = [&](const Sequence& s) { return (s.keys + test.page_size - 1) / test.page_size; };
  Pages pages{.tables = {}, .pool = 3};
  for (const Sequence& s : test.sequences) pages.pool += pages_of(s);
  std::vector<std::int32_t> order(static_cast<std::size_t>(pages.pool));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(test.page_order));
  std::size_t next = 0;
  for (const Sequence& s : test.sequences) {
    std::vector<std::int32_t> table;
    const int shared = test.shared_pages && !pages.tables.empty()
                           ? std::min(s.keys, test.sequences[0].keys) / test.page_size
                           : 0;
    for (int i = 0; i < pages_of(s); ++i)
      table.push_back(i < shared ? pages.tables[0][static_cast<std::size_t>(i)] : order[next++]);
    pages.tables.push_back(std::move(table));
  }
  for (auto& table : pages.tables) table.insert(table.end(), {-7, 1 << 30});  // never looked at
  return pages;
}

std::vector<std::int32_t> offsets(const std::vector<Sequence>& sequences, std::int32_t Sequence::*length) {
  std::vector<std::int32_t> sums{0};
  for (const Sequence& s : sequences) sums.push_back(sums.back() + s.*length);
  return sums;
}

Batch make_batch(const Case& test, const Pages& pages) {
  auto cu_seqlens_q = offsets(test.sequences, &Sequence::queries);
  Batch batch;
  if (test.page_size == 0) {
    batch = Batch::packed(std::move(cu_seqlens_q), offsets(test.sequences, &Sequence::keys));
  } else {
    std::vector<std::int32_t> lengths;
    for (const Sequence& s : test.sequences) lengths.push_back(s.keys);
    batch = Batch::paged(std::move(cu_seqlens_q), std::move(lengths), test.page_size, pages.tables).value();
  }
  batch.tables = test.tables;
  return batch;
}

// Offset of the first column of a key or value.
std::int64_t key_offset(const Batch& batch, const TensorView& view, int sequence, std::int64_t first,
                        std::int64_t position, int head) {
  if (!batch.is_paged()) return offset(view, {first + position, head});
  const std::int64_t entry = sequence * batch.block_table_stride + position / batch.page_size;
  return offset(view, {batch.block_table[static_cast<std::size_t>(entry)], position % batch.page_size, head});
}

void fill_keys(const Case& test, Background background, Data& data) {
  const Values values(test);
  Problem bound = test.problem;
  bound.mask = bound.mask.with_tables(test.tables).value();
  const bool broadcast = test.inputs == Arrangement::broadcast_heads;
  const bool keep_hidden =
      background == Background::zeros || test.shared_pages || broadcast || bound.mask.is_all();
  std::int64_t first = 0;
  for (int b = 0; b < data.batch.sequences(); ++b) {
    const Sequence& s = test.sequences[static_cast<std::size_t>(b)];
    parallel_for(s.keys, 0, [&](std::int64_t position, int) {
      for (int head = 0; head < bound.kv_heads; ++head) {
        const bool poisoned = !keep_hidden && hidden(test, bound, b, head, position);
        const auto fill_row = [&](const TensorView& view, const TensorView& scales, auto value) {
          const float scale = scales.empty() ? 1 : load_element(scales.data, scales.dtype, head);
          const std::int64_t begin = key_offset(data.batch, view, b, first, position, head);
          for (int c = 0; c < view.shape[view.rank - 1]; ++c) {
            const float element = poisoned ? poison(position + c)
                                           : (values.*value)(s, position, broadcast ? 0 : head, c) / scale;
            store_element(view.data, view.dtype, begin + c * view.stride[view.rank - 1], element);
          }
        };
        fill_row(data.k.view, data.k_scale.view, &Values::key);
        fill_row(data.v.view, data.v_scale.view, &Values::value);
      }
    });
    first += s.keys;
  }
}

void fill_queries(const Case& test, Data& data) {
  const Values values(test);
  const Problem& problem = test.problem;
  std::int64_t row = 0;
  for (const Sequence& s : test.sequences) {
    parallel_for(s.queries, 0, [&](std::int64_t i, int) {
      const std::int64_t position = s.keys - s.queries + i;
      for (int head = 0; head < problem.query_heads; ++head) {
        const int source = test.inputs == Arrangement::broadcast_heads ? 0 : head;
        for (int c = 0; c < problem.head_dim; ++c)
          put(data.q.view, {row + i, head, c}, values.query(s, position, source, c));
        for (int c = 0; c < problem.value_dim(); ++c)
          put(data.grad_out.view, {row + i, head, c}, values.grad_out(s, position, source, c));
      }
    });
    row += s.queries;
  }
}

// What there is one of for each head.
void fill_heads(const Problem& problem, const Values& values, Data& data) {
  for (int head = 0; problem.sinks && head < problem.query_heads; ++head)
    put(data.sinks.view, {head}, values.sink(head));
  for (int head = 0; problem.has_kv_scales() && head < problem.kv_heads; ++head) {
    put(data.k_scale.view, {head}, 0.011f * static_cast<float>(1 + head));
    put(data.v_scale.view, {head}, 0.07f / static_cast<float>(1 + head));
  }
}

std::string_view name(Fill fill) {
  constexpr std::string_view names[] = {"normal",       "zero queries", "unit values", "dominant key",
                                        "large scores", "NaN inside",   "NaN queries"};
  return names[static_cast<std::size_t>(fill)];
}

std::string_view name(Arrangement arrangement) {
  constexpr std::string_view names[] = {"contiguous",    "heads first",     "padded",
                                        "columns first", "broadcast heads", "misaligned"};
  return names[static_cast<std::size_t>(arrangement)];
}

}  // namespace

std::string Case::describe() const {
  std::string lengths;
  for (const Sequence& s : sequences) lengths += fmt::format(" {}x{}", s.queries, s.keys);
  const std::string layout = page_size == 0 ? "packed"
                                            : fmt::format("pages of {} in order {}{}", page_size, page_order,
                                                          shared_pages ? ", shared" : "");
  return fmt::format("{} (seed {}): {}; sequences{}; {}; {}; inputs {}, outputs {}", feature, seed,
                     problem.describe(), lengths, layout, name(fill), name(inputs), name(outputs));
}

Stored store(DType dtype, std::span<const std::int64_t> shape, Arrangement arrangement, float background) {
  Stored stored;
  TensorView& view = stored.view;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::ranges::copy(shape, view.shape.begin());
  const auto order = memory_order(view.rank, arrangement);
  std::int64_t step = 1;
  for (auto dimension = order.rbegin(); dimension != order.rend(); ++dimension) {
    const bool heads = *dimension == (view.rank == 2 ? 1 : view.rank - 2);
    if (heads && arrangement == Arrangement::broadcast_heads) {
      view.stride[*dimension] = 0;
      continue;
    }
    view.stride[*dimension] = step;
    step *= shape[static_cast<std::size_t>(*dimension)];
    if (heads && arrangement == Arrangement::padded) step += 3;
  }
  constexpr std::int64_t guard = 5;
  const std::int64_t begin = arrangement == Arrangement::misaligned ? 1 : 32;  // whole cache lines
  stored.memory = Tensor::zeros(dtype, {begin + step + guard});
  for (std::int64_t i = 0; i < stored.memory.elements(); ++i) {
    store_element(stored.memory.view().data, dtype, i, std::isnan(background) ? poison(i) : background);
  }
  view.data =
      static_cast<std::byte*>(stored.memory.view().data) + begin * static_cast<std::int64_t>(size_of(dtype));
  return stored;
}

ForwardTensors Data::forward() const {
  return {q.view, k.view, v.view, out.view, lse.view, sinks.view, k_scale.view, v_scale.view};
}

BackwardTensors Data::backward() const {
  return {q.view,      k.view,      v.view,      out.view,        lse.view,     sinks.view,  grad_out.view,
          grad_q.view, grad_k.view, grad_v.view, grad_sinks.view, k_scale.view, v_scale.view};
}

Batch batch_of(const Case& test) { return make_batch(test, deal_pages(test)); }

Data make_data(const Case& test, Background background) {
  const Problem& problem = test.problem;
  const float unused = background == Background::poison ? nan : 0.0f;
  const Pages pages = deal_pages(test);
  Data data;
  data.batch = make_batch(test, pages);
  const std::int64_t queries = data.batch.total_q(), keys = data.batch.total_k();
  const auto input = [&](DType dtype, std::vector<std::int64_t> shape) {
    return store(dtype, shape, test.inputs, unused);
  };
  const auto key_input = [&](int columns) {
    const DType dtype = problem.kv_dtype_or_default();
    if (test.page_size == 0) return input(dtype, {keys, problem.kv_heads, columns});
    return input(dtype, {pages.pool, test.page_size, problem.kv_heads, columns});
  };
  const auto output = [&](DType dtype, std::vector<std::int64_t> shape) {
    return store(dtype, shape, test.outputs, nan);
  };
  data.q = input(problem.dtype, {queries, problem.query_heads, problem.head_dim});
  data.k = key_input(problem.head_dim);
  data.v = key_input(problem.value_dim());
  data.grad_out = input(problem.dtype, {queries, problem.query_heads, problem.value_dim()});
  data.out = output(problem.dtype, {queries, problem.query_heads, problem.value_dim()});
  data.lse = output(DType::float32, {queries, problem.query_heads});
  data.grad_q = output(problem.dtype, {queries, problem.query_heads, problem.head_dim});
  data.grad_k = output(problem.dtype, {keys, problem.kv_heads, problem.head_dim});
  data.grad_v = output(problem.dtype, {keys, problem.kv_heads, problem.value_dim()});
  if (problem.sinks) {
    data.sinks = input(DType::float32, {problem.query_heads});
    data.grad_sinks = output(DType::float32, {problem.query_heads});
  }
  if (problem.has_kv_scales()) {
    data.k_scale = input(DType::float32, {problem.kv_heads});
    data.v_scale = input(DType::float32, {problem.kv_heads});
  }
  fill_queries(test, data);
  fill_heads(problem, Values(test), data);
  fill_keys(test, background, data);
  return data;
}

}  // namespace chorale::conformance
