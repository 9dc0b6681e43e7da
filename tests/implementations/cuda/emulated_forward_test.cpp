// The forward kernel itself, compiled for this processor: its rings, barriers and places in shared memory
// under random orders of its warps. What the tensor cores and the copy engine do is emulated (emulation/).
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "cuda_functions.h"
#include "sanitized.h"

extern "C" {
alignas(1024) unsigned char memory[emulation::shared_bytes];
}

#include "forward.cu"

void __syncthreads() { emulation::named_barrier(0).sync(chorale::kernels::forward_threads); }

namespace chorale::kernels {

namespace {
std::map<int, Products> products_of_threads;
}
Products& products() { return products_of_threads[emulation::thread().number]; }

namespace {

constexpr int kv_heads = 2, heads = kv_heads * Config::group, dim = Config::head_dim;
constexpr u16 infinity_16 = Config::bfloat16 ? 0x7f80 : 0x7c00, nan_16 = Config::bfloat16 ? 0x7fc0 : 0x7e00;
float value_of(u16 x) { return unpack<Config::bfloat16>(x); }

struct Lengths {
  int queries, keys;
};

// One batch, packed or in pages of random order, and its results.
struct Launch {
  std::vector<Lengths> lengths;
  std::vector<Sequence> sequences;
  std::vector<RowBlock> blocks;
  std::vector<u16> q, k, v, out;
  std::vector<float> lse, sinks;
  std::vector<int> block_table, documents;
  int tokens = 0, slots = 0, stride = 0;

  explicit Launch(std::vector<Lengths> of, std::uint64_t seed, std::vector<int> documents = {})
      : lengths(std::move(of)), documents(std::move(documents)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (const Lengths& length : lengths) stride = std::max(stride, (length.keys + page - 1) / page);
    std::vector<int> pages(lengths.size() * static_cast<std::size_t>(stride));
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int>(i);
    std::shuffle(pages.begin(), pages.end(), random);
    block_table = pages;
    for (const Lengths& length : lengths) {
      const int s = static_cast<int>(sequences.size());
      for (int row = 0; row < length.queries; row += Config::positions) blocks.push_back({s, row});
      sequences.push_back({tokens, length.queries, Config::paged ? 0 : slots, length.keys});
      tokens += length.queries;
      slots += length.keys;
    }
    if (Config::paged) slots = static_cast<int>(pages.size()) * page;
    const auto fill = [&](std::vector<u16>& to, int rows, int of_heads) {
      to.resize(static_cast<std::size_t>(rows * of_heads * dim));
      for (u16& x : to) x = round_to_16<Config::bfloat16>(normal(random));
    };
    for (int h = 0; Config::sinks && h < heads; ++h) sinks.push_back(normal(random));
    fill(q, tokens, heads);
    fill(k, slots, kv_heads);
    fill(v, slots, kv_heads);
  }
  static constexpr int page = Config::paged ? Config::page_size : 1;

  int slot(int s, int key) const {
    if (!Config::paged) return sequences[static_cast<std::size_t>(s)].kv_first + key;
    return block_table[static_cast<std::size_t>(s * stride + key / page)] * page + key % page;
  }
  u16& value(int s, int key, int kv_head, int column) {
    return v[static_cast<std::size_t>((slot(s, key) * kv_heads + kv_head) * dim + column)];
  }
  int document(int key) const { return documents.empty() ? 0 : documents[static_cast<std::size_t>(key)]; }

  static TensorMap map(std::vector<u16>& data, std::array<long long, 4> size,
                       std::array<long long, 4> strides, std::array<int, 4> box) {
    Map m{data.data(), {}, {}, {}};
    std::ranges::copy(size, m.size);
    std::ranges::copy(strides, m.stride);
    std::ranges::copy(box, m.box);
    TensorMap map{};
    std::memcpy(&map, &m, sizeof m);
    return map;
  }

  void run(std::uint64_t seed) {
    out.assign(q.size(), nan_16);
    lse.assign(static_cast<std::size_t>(tokens * heads), NAN);
    ForwardParams params{};
    params.q =
        map(q, {dim, heads, tokens, 1}, {1, dim, heads * dim, 0}, {64, Config::group, Config::positions, 1});
    const int pages = slots / page, box = Config::paged ? std::min(page, Config::tile) : Config::tile;
    for (const auto& [to, data] : {std::pair(&params.k, &k), {&params.v, &v}})
      *to = map(*data, {dim, kv_heads, Config::paged ? page : slots, Config::paged ? pages : 1},
                {1, dim, kv_heads * dim, static_cast<long long>(page) * kv_heads * dim}, {64, 1, box, 1});
    constexpr int box_positions = forward_warp_rows / Config::group;
    params.out_boxes =
        map(out, {dim, heads, tokens, 1}, {1, dim, heads * dim, 0}, {64, Config::group, box_positions, 1});
    params.out = {out.data(), heads * dim, dim};
    params.k_rows = {k.data(), kv_heads * dim, dim};
    params.v_rows = {v.data(), kv_heads * dim, dim};
    params.k_page_stride = params.v_page_stride = static_cast<long long>(page) * kv_heads * dim;
    params.lse = lse.data();
    params.sinks = Config::sinks ? sinks.data() : nullptr;
    const PlanCounts counts{static_cast<int>(blocks.size()), 0, Config::paged ? stride : 0, 0, 1};
    const TableView table{documents.data(), nullptr, 1, static_cast<int>(documents.size())};
    int next_item[2] = {};
    params.plan = {&counts, sequences.data(), blocks.data(), nullptr, block_table.data(), &table, next_item};
    params.scale = 1 / std::sqrt(static_cast<float>(dim));
    params.factor = params.scale * 1.4426950408889634f;
    params.kv_heads = params.heads = kv_heads;
    std::memset(memory, 0xff, sizeof memory);
    products_of_threads.clear();
    std::string problem;
    ASSERT_TRUE(emulation::run_block(
        forward_threads, seed, [&] { chorale_forward(params); }, &problem))
        << problem;
    EXPECT_EQ(next_item[0], 0);
    EXPECT_EQ(next_item[1], 0);
  }

  // Against float64. Infinities and NaN are where they belong.
  void check() {
    for (std::size_t s = 0; s < lengths.size(); ++s)
      for (int i = 0; i < lengths[s].queries; ++i)
        for (int h = 0; h < heads; ++h) {
          const int position = lengths[s].keys - lengths[s].queries + i, row = sequences[s].q_first + i;
          std::vector<double> sum(dim);
          double all = Config::sinks ? std::exp(sinks[static_cast<std::size_t>(h)]) : 0;
          const int seen = Config::masked ? position + 1 : lengths[s].keys;
          for (int key = 0; key < seen; ++key) {
            if (Config::masked && document(key) != document(position)) continue;
            double score = 0;
            for (int c = 0; c < dim; ++c)
              score +=
                  static_cast<double>(value_of(q[static_cast<std::size_t>((row * heads + h) * dim + c)])) *
                  value_of(k[static_cast<std::size_t>(
                      (slot(static_cast<int>(s), key) * kv_heads + h / Config::group) * dim + c)]);
            const double p = std::exp(score / std::sqrt(static_cast<double>(dim)));
            all += p;
            for (int c = 0; c < dim; ++c)
              sum[static_cast<std::size_t>(c)] +=
                  p * value_of(value(static_cast<int>(s), key, h / Config::group, c));
          }
          for (int c = 0; c < dim; ++c) {
            const double expected = sum[static_cast<std::size_t>(c)] / all;
            const float found = value_of(out[static_cast<std::size_t>((row * heads + h) * dim + c)]);
            const std::string where = "sequence " + std::to_string(s) + " row " + std::to_string(i) +
                                      " head " + std::to_string(h) + " column " + std::to_string(c);
            if (std::isfinite(expected))
              ASSERT_NEAR(found, expected, 0.02) << where;
            else
              ASSERT_TRUE(std::isnan(expected) ? std::isnan(found) : found == static_cast<float>(expected))
                  << where;
          }
          ASSERT_NEAR(lse[static_cast<std::size_t>(row * heads + h)], std::log(all), 0.01);
        }
  }
};

constexpr std::uint64_t orders = 4;

class EmulatedForward : public ::testing::Test {
  void SetUp() override {
    if (sanitized) GTEST_SKIP() << "sanitizers do not follow fibers";
  }
};

// Whatever the order of warps: the same bits, which are near those of float64.
void expect_one_result(Launch& launch) {
  std::vector<u16> first;
  for (std::uint64_t seed = 0; seed < orders; ++seed) {
    launch.run(seed);
    if (::testing::Test::HasFatalFailure()) return;
    if (first.empty()) {
      first = launch.out;
      launch.check();
    }
    EXPECT_EQ(launch.out, first) << seed;
  }
}

TEST_F(EmulatedForward, RandomOrdersGiveOneResult) {
  Launch launch({{1, 1}, {130, 130}, {40, 420}, {64, 64}, {7, 20}}, 1);
  expect_one_result(launch);
}

// Of some of these values some rows of a block see nothing: such a block is done twice.
TEST_F(EmulatedForward, RowBlocksThatGiveNaNAreDoneAgain) {
  std::vector<Lengths> lengths(6, {70, 70});
  lengths.push_back({100, 233});
  lengths.push_back({1, 1});
  lengths.push_back({64, 64});
  Launch launch(lengths, 2);
  for (const int s : {0, 1, 4, 6, 8}) {
    launch.value(s, 20, 0, 3) = nan_16;
    launch.value(s, 33, 1, 5) = infinity_16;
    launch.value(s, 41, 1, 5) = infinity_16;
    launch.value(s, launch.lengths[static_cast<std::size_t>(s)].keys - 2, 0, 60) = infinity_16;
  }
  expect_one_result(launch);
}

TEST_F(EmulatedForward, Documents) {
  std::vector<int> documents;
  for (int i = 0; i < 300; ++i) documents.push_back(i / 37);
  Launch launch({{300, 300}, {90, 250}}, 3, documents);
  launch.value(0, 100, 0, 0) = nan_16;
  expect_one_result(launch);
}

}  // namespace
}  // namespace chorale::kernels
