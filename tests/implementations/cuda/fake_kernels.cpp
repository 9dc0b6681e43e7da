// The kernels' contract (kernels/params.h) in plain C++, in float64: what the host hands over is read as a
// kernel reads it, every row is computed once, and whatever a kernel could not bear is a failure of the test.
#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <set>

#include "base/float.h"
#include "implementations/cuda/fake_gpu.h"
#include "implementations/cuda/on_gpu.h"
#include "kernels/cache_params.h"
#include "mask/emit_cuda.h"
#include "mask/table.h"

namespace chorale::testing {
namespace {

using namespace kernels;

std::mutex mutex;
Problem problem;  // of the last plan: the fake cannot run emitted programs
std::vector<FakeLaunched> launches;

int constant(const std::string& source, const std::string& name) {
  const std::string define = "#define CHORALE_" + name + " ";
  const std::size_t at = source.find(define);
  int value = -1;
  if (at != std::string::npos) {
    const char* begin = source.data() + at + define.size();
    if (std::string_view(begin, 5) == "false") return 0;
    if (std::string_view(begin, 4) == "true") return 1;
    std::from_chars(begin, source.data() + source.size(), value);
  }
  return value;
}

class FakeKernel {
 public:
  FakeKernel(const std::string& source, const ForwardParams& params) : source_(source), params_(params) {
    std::memcpy(&q_, &params.q, sizeof q_);
    std::memcpy(&k_, &params.k, sizeof k_);
    std::memcpy(&v_, &params.v, sizeof v_);
  }

  void run(bool is_decode) {
    const bool codes = value("FP8_CACHE") != 0;
    const int key_blocks =
        is_decode ? box_column_blocks(value("HEAD_DIM"), value("VALUE_DIM"), codes, value("PAGE_SIZE")) : 1;
    if (key_blocks > 1) {
      const int value_blocks = value_box_blocks(value("VALUE_DIM"), codes, value("CLUSTER"), key_blocks);
      k_ = with_joined_columns(k_, static_cast<unsigned>(key_blocks));
      v_ = with_joined_columns(v_, static_cast<unsigned>(value_blocks));
    }
    check_constants(is_decode);
    check_tables();
    const PlanView& plan = params_.plan;
    if (!is_decode) {
      EXPECT_EQ(plan.counts->split_items, 0);
      for (int i = 0; i < plan.counts->row_blocks; ++i) run_block(plan.row_blocks[i]);
      return;
    }
    check_items(plan);
  }

 private:
  int value(const char* name) const { return constant(source_, name); }
  int chunk() const { return std::max(1, value("CHUNK")); }

  // A map for boxes of several blocks of columns, as one for boxes of a block.
  static FakeTensorMap with_joined_columns(const FakeTensorMap& map, unsigned blocks) {
    EXPECT_EQ(map.rank, 5U);
    EXPECT_EQ(map.box[2], blocks);
    EXPECT_EQ(map.sizes[2] % blocks, 0U);
    EXPECT_EQ(map.strides[2], map.sizes[0] * map.strides[0]);
    FakeTensorMap joined = map;
    joined.rank = 4;
    joined.sizes[0] = map.sizes[0] * map.sizes[2];
    for (const auto& [to, from] : {std::pair(1, 3), {2, 1}, {3, 4}}) {
      joined.sizes[to] = map.sizes[from];
      joined.strides[to] = map.strides[from];
      joined.box[to] = map.box[from];
    }
    return joined;
  }

  // Every chunk of every row block is in one item, and what items share they share with their row block
  // alone.
  void check_items(const PlanView& plan) {
    std::map<int, std::vector<SplitItem>> blocks;  // by the first query row
    for (int i = 0; i < plan.counts->split_items; ++i)
      blocks[plan.split_items[i].q_row].push_back(plan.split_items[i]);
    EXPECT_EQ(static_cast<int>(blocks.size()), plan.counts->row_blocks);
    EXPECT_LE(plan.counts->split_items, params_.item_room);
    std::set<int> slots, counters;
    for (int i = 0; i < plan.counts->row_blocks; ++i) {
      const RowBlock block = plan.row_blocks[i];
      const Sequence sequence = plan.sequences[block.sequence];
      int chunks = 0, states = 0;
      for (const SplitItem& item : blocks[sequence.q_first + block.first]) {
        EXPECT_EQ(item.sequence, block.sequence);
        EXPECT_EQ(item.positions, std::min(value("POSITIONS"), sequence.q_len - block.first));
        EXPECT_EQ(item.q_position, sequence.kv_len - sequence.q_len + block.first);
        EXPECT_EQ(item.kv_first, sequence.kv_first);
        EXPECT_EQ(item.kv_len, sequence.kv_len);
        EXPECT_EQ(item.first_chunk, chunks) << "in ascending order";
        EXPECT_TRUE(item.chunks == 1 || item.first_chunk == 0);
        EXPECT_EQ(item.state, states++);
        chunks += item.chunks;
        if (item.states == 1) continue;
        EXPECT_LT(item.first_slot + item.state, params_.slots);
        EXPECT_TRUE(slots.insert(item.first_slot + item.state).second) << "a partial state of two items";
        poison_partial(item);
        const int step = std::max(0, item.state - 1) / merge_step;
        EXPECT_LT(item.first_counter + step, params_.arrival_counters);
        if (item.state % merge_step == 1)
          EXPECT_TRUE(counters.insert(item.first_counter + step).second) << "a counter of two steps";
      }
      EXPECT_EQ(chunks, std::max(1, (sequence.kv_len + chunk() - 1) / chunk()));
      for (const SplitItem& item : blocks[sequence.q_first + block.first]) EXPECT_EQ(item.states, states);
      run_block(block);
    }
  }

  void check_constants(bool is_decode) const {
    EXPECT_EQ(value("HEAD_DIM"), problem.head_dim);
    EXPECT_EQ(value("VALUE_DIM"), problem.value_dim());
    EXPECT_EQ(value("GROUP"), problem.group_size());
    EXPECT_EQ(value("SINKS"), problem.sinks ? 1 : 0);
    EXPECT_EQ(value("FP8_CACHE"), is_decode && problem.has_kv_scales() ? 1 : 0);
    EXPECT_EQ(params_.kv_heads, problem.kv_heads);
    EXPECT_GE(params_.plan.counts->heads_together, 1);
    EXPECT_LE(params_.plan.counts->heads_together, params_.kv_heads);
    EXPECT_EQ(value("MASKED"), problem.mask.is_all() ? 0 : 1);
    EXPECT_EQ(value("SCORED"), problem.score.is_identity() ? 0 : 1);
    EXPECT_EQ(chunk() % std::max(1, value("TILE")), 0);
    EXPECT_EQ(q_.box[1], static_cast<unsigned>(value("GROUP")));
    EXPECT_EQ(q_.box[2], static_cast<unsigned>(value("POSITIONS")));
    const int page_size = value("PAGE_SIZE");
    EXPECT_EQ(k_.box[2],
              static_cast<unsigned>(page_size == 0 ? value("TILE") : std::min(page_size, value("TILE"))));
    if (page_size != 0) EXPECT_EQ(k_.sizes[2], static_cast<unsigned>(page_size));
    EXPECT_FLOAT_EQ(params_.factor,
                    (problem.score.is_identity() ? problem.scale_or_default() : 1.0f) * 1.442695041f);
  }

  void check_tables() const {
    std::size_t i = 0;
    for (const Program* program : {&problem.mask.program(), &problem.score.program()})
      for (const Table& table : program->tables()) {
        const TableView& view = params_.plan.tables[i++];
        for (const void* address : {view.values, view.extremes})
          EXPECT_EQ(fake_memory_of(address), fake_memory_of(params_.plan.tables)) << "of another copy";
        EXPECT_EQ(view.rows, device_rows(table));
        EXPECT_EQ(view.columns, device_columns(table));
        const Table::Data& data = table.data();
        const std::vector<std::int32_t> tree = table_tree(table);
        const void* values =
            data.is_float ? static_cast<const void*>(data.floats.data()) : data.integers.data();
        EXPECT_EQ(
            std::memcmp(view.values, values, 4 * static_cast<std::size_t>(table.rows() * table.columns())),
            0);
        if (!tree.empty()) EXPECT_EQ(std::memcmp(view.extremes, tree.data(), 4 * tree.size()), 0);
      }
  }

  // What a kernel would write there must be the plan's own memory.
  void poison_partial(const SplitItem& item) const {
    const int rows = value("POSITIONS") * value("GROUP");
    for (int head = 0; head < params_.kv_heads; ++head) {
      const std::size_t at = (static_cast<std::size_t>(head) * static_cast<std::size_t>(params_.slots) +
                              static_cast<std::size_t>(item.first_slot + item.state)) *
                             static_cast<std::size_t>(rows);
      const auto dim = static_cast<std::size_t>(value("VALUE_DIM"));
      for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
        params_.partial_reference[at + r] = params_.partial_sum[at + r] = NAN;
        for (std::size_t c = 0; c < dim; ++c) params_.partial_out[(at + r) * dim + c] = NAN;
      }
    }
  }

  // A row of a tensor, as the copy engine would bring it.
  std::vector<float> row_of(const FakeTensorMap& map, DType dtype, std::uint64_t head, std::uint64_t row,
                            std::uint64_t page, float scale) const {
    std::vector<float> values(map.sizes[0]);
    const bool inside = head < map.sizes[1] && row < map.sizes[2] && (map.rank == 3 || page < map.sizes[3]);
    EXPECT_TRUE(inside) << "head " << head << ", row " << row << ", page " << page;
    if (!inside) return values;
    const std::byte* at = map.address + head * map.strides[1] + row * map.strides[2] + page * map.strides[3];
    for (std::size_t c = 0; c < values.size(); ++c) {
      values[c] = load_element(at, dtype, static_cast<std::int64_t>(c)) * scale;
      if (!problem.has_kv_scales() || dtype != DType::float8_e4m3) continue;
      float bits = 0;  // room for any type
      store_element(&bits, problem.dtype, 0, values[c]);
      values[c] = load_element(&bits, problem.dtype, 0);
    }
    return values;
  }

  // Where key `position` lies: slot and page.
  std::pair<std::uint64_t, std::uint64_t> place(int sequence, int position) const {
    const PlanView& plan = params_.plan;
    const int page_size = value("PAGE_SIZE");
    if (page_size == 0) return {static_cast<std::uint64_t>(plan.sequences[sequence].kv_first + position), 0};
    const int page = plan.block_table[sequence * plan.counts->block_table_stride + position / page_size];
    return {static_cast<std::uint64_t>(position % page_size), static_cast<std::uint64_t>(page)};
  }

  struct Keys {  // of a sequence under a KV head
    std::vector<std::vector<float>> k, v;
  };
  Keys keys_of(int b, const Sequence& sequence, int kv_head) const {
    Keys keys;
    const bool codes = value("FP8_CACHE") != 0;
    const DType dtype = codes ? problem.kv_dtype_or_default() : problem.dtype;
    const auto head = static_cast<std::uint64_t>(kv_head);
    for (int position = 0; position < sequence.kv_len; ++position) {
      const auto [slot, page] = place(b, position);
      keys.k.push_back(row_of(k_, dtype, head, slot, page, codes ? params_.k_scale[kv_head] : 1));
      keys.v.push_back(row_of(v_, dtype, head, slot, page, codes ? params_.v_scale[kv_head] : 1));
    }
    return keys;
  }

  void run_block(const RowBlock& block) const {
    const Sequence sequence = params_.plan.sequences[block.sequence];
    const int end = std::min(block.first + value("POSITIONS"), sequence.q_len), group = value("GROUP");
    EXPECT_LT(block.first, sequence.q_len);
    for (int kv_head = 0; kv_head < params_.heads; ++kv_head) {
      const Keys keys = keys_of(block.sequence, sequence, kv_head);
      for (int row = block.first; row < end; ++row)
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head)
          run_row(block.sequence, sequence, keys, row, head);
    }
  }

  void run_row(int b, const Sequence& sequence, const Keys& keys, int row, int head) const {
    const auto token = static_cast<std::uint64_t>(sequence.q_first) + static_cast<std::uint64_t>(row);
    const std::vector<float> q = row_of(q_, problem.dtype, static_cast<std::uint64_t>(head), token, 0, 1);
    double maximum = -INFINITY, sum = 0;
    std::vector<double> out(static_cast<std::size_t>(problem.value_dim()));
    const auto take = [&](double s, const std::vector<float>* v) {
      const double larger = std::max(maximum, s);
      const double old = maximum == -INFINITY ? 0 : std::exp(maximum - larger), p = std::exp(s - larger);
      for (std::size_t c = 0; c < out.size(); ++c) out[c] = out[c] * old + (v == nullptr ? 0 : p * (*v)[c]);
      sum = sum * old + p;
      maximum = larger;
    };
    for (int k = 0; k < sequence.kv_len; ++k) {
      const Point point{b, params_.first_query_head + head, sequence.kv_len - sequence.q_len + row, k};
      if (!evaluate_mask(problem.mask.program(), point)) continue;
      const auto at = static_cast<std::size_t>(k);
      double dot = 0;
      for (std::size_t c = 0; c < q.size(); ++c) dot += static_cast<double>(q[c]) * keys.k[at][c];
      const double s = evaluate_score(problem.score.program(), point, params_.scale * dot);
      if (s != -INFINITY) take(s, &keys.v[at]);
    }
    if (params_.sinks != nullptr) take(params_.sinks[head], nullptr);
    const std::int64_t first =
        static_cast<std::int64_t>(token) * params_.out.token_stride + head * params_.out.head_stride;
    for (std::size_t c = 0; c < out.size(); ++c)
      store_element(params_.out.data, problem.dtype, first + static_cast<std::int64_t>(c),
                    static_cast<float>(sum == 0 ? 0 : out[c] / sum));
    if (params_.lse != nullptr)
      params_
          .lse[token * static_cast<std::uint64_t>(problem.query_heads) + static_cast<std::uint64_t>(head)] =
          static_cast<float>(sum == 0 ? -INFINITY : maximum + std::log(sum));
  }

  const std::string& source_;
  const ForwardParams& params_;
  FakeTensorMap q_, k_, v_;
};

// Rows of a tile that are past the sequence's end become NaN.
void widen(const std::string& source, const WidenParams& params) {
  const PlanView& plan = params.plan;
  const int tile_keys = constant(source, "TILE"), page_size = constant(source, "PAGE_SIZE");
  for (int i = 0; i < plan.counts->key_tiles; ++i) {
    const KeyTile tile = params.tiles[i];
    const Sequence sequence = plan.sequences[tile.sequence];
    EXPECT_LT(tile.number * tile_keys, sequence.kv_len);
    for (int key = 0; key < tile_keys; ++key) {
      const int position = tile.number * tile_keys + key;
      const bool is_real = position < sequence.kv_len;
      const bool is_paged = is_real && page_size != 0;
      const long long page =
          is_paged ? plan.block_table[tile.sequence * plan.counts->block_table_stride + position / page_size]
                   : 0;
      const long long slot = is_paged ? position % page_size : sequence.kv_first + position;
      const auto widen_rows = [&](const Rows& codes, long long page_stride, const Rows& wide,
                                  const float* scales, int dim) {
        for (int head = 0; head < params.heads; ++head)
          for (int c = 0; c < dim; ++c) {
            const long long from =
                page * page_stride + slot * codes.token_stride + head * codes.head_stride + c;
            const long long to = (static_cast<long long>(i) * tile_keys + key) * wide.token_stride +
                                 head * wide.head_stride + c;
            store_element(wide.data, problem.dtype, to,
                          is_real ? load_element(codes.data, DType::float8_e4m3, from) * scales[head] : NAN);
          }
      };
      widen_rows(params.k, params.k_page_stride, params.k_wide, params.k_scale, problem.head_dim);
      widen_rows(params.v, params.v_page_stride, params.v_wide, params.v_scale, problem.value_dim());
    }
  }
}

void store_rows(const Rows& rows, const Rows& cache, long long page_stride, const float* scales, int dim,
                int page_size, const StoreParams& params) {
  for (int token = 0; token < params.tokens; ++token)
    for (int head = 0; head < params.kv_heads; ++head) {
      const long long slot = params.slots[token];
      if (slot < 0) continue;
      const long long from = token * rows.token_stride + head * rows.head_stride;
      const long long to =
          slot / page_size * page_stride + slot % page_size * cache.token_stride + head * cache.head_stride;
      for (int c = 0; c < dim; ++c) {
        const float x = load_element(rows.data, problem.dtype, from + c);
        store_element(cache.data, problem.kv_dtype_or_default(), to + c,
                      scales == nullptr ? x : x / scales[head]);
      }
    }
}

void store(const std::string& source, const StoreParams& params) {
  const int page_size = constant(source, "PAGE_SIZE");
  store_rows(params.k, params.k_cache, params.k_page_stride, params.k_scale, problem.head_dim, page_size,
             params);
  store_rows(params.v, params.v_cache, params.v_page_stride, params.v_scale, problem.value_dim(), page_size,
             params);
}

void copy_pages(const CopyPagesParams& params) {
  for (int p = 0; p < params.pool_count; ++p)
    for (int i = 0; i < params.copy_count; ++i) {
      const PagePool& pool = params.pools[p];
      std::memcpy(static_cast<std::byte*>(pool.to) + params.copies[i].to * pool.to_stride,
                  static_cast<const std::byte*>(pool.from) + params.copies[i].from * pool.from_stride,
                  static_cast<std::size_t>(pool.page_bytes));
    }
}

// What a launch counts in: zero before it and after it, and nobody else's while it is under way.
std::vector<int*> counters_of(const ForwardParams& params, bool is_decode) {
  std::vector<int*> counters{params.plan.next_item, params.plan.next_item + 1};
  for (int i = 0; is_decode && i < params.arrival_counters * params.kv_heads; ++i)
    counters.push_back(params.arrivals + i);
  return counters;
}

FakeLaunchEnd run(const std::string& source, const ForwardParams& params, bool is_decode) {
  static int number = 0;  // of the launch
  const int mark = ++number;
  const std::vector<int*> counters = counters_of(params, is_decode);
  for (int* counter : counters) EXPECT_EQ(std::exchange(*counter, mark), 0) << "used by two launches at once";
  FakeKernel(source, params).run(is_decode);
  return [=] {
    for (int* counter : counters) EXPECT_EQ(std::exchange(*counter, 0), mark) << "written by another launch";
  };
}

FakeLaunchEnd launch(const std::string& entry, const std::string& source, int blocks,
                     const void* parameters) {
  const std::lock_guard lock(mutex);
  EXPECT_GT(blocks, 0);
  launches.push_back({entry, {}});
  std::set<const void*>& written = launches.back().written;
  if (entry == "chorale_store") return store(source, *static_cast<const StoreParams*>(parameters)), nullptr;
  if (entry == "chorale_copy_pages")
    return copy_pages(*static_cast<const CopyPagesParams*>(parameters)), nullptr;
  if (entry == "chorale_widen") {
    const auto& params = *static_cast<const WidenParams*>(parameters);
    written = {params.k_wide.data, params.v_wide.data};
    return widen(source, params), nullptr;
  }
  alignas(64) ForwardParams params;
  std::memcpy(&params, parameters, sizeof params);
  const bool is_decode = entry == "chorale_decode";
  written = {params.plan.next_item};
  if (is_decode)
    written.insert({params.arrivals, params.partial_out, params.partial_reference, params.partial_sum});
  return run(source, params, is_decode);
}

}  // namespace

void planned(const Problem& bound) {
  const std::lock_guard lock(mutex);
  problem = bound;
}

std::vector<FakeLaunched> taken_launches() {
  const std::lock_guard lock(mutex);
  return std::exchange(launches, {});
}

}  // namespace chorale::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  chorale::testing::on_plan = chorale::testing::planned;
  ::setenv("CHORALE_NVRTC", "libcuda.so.1", 1);
  ::setenv("CHORALE_KERNEL_CACHE", "off", 1);
  chorale::testing::set_fake_launch(chorale::testing::launch);
  return RUN_ALL_TESTS();
}
