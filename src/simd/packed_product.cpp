#include <algorithm>
#include <vector>

#include "base/threads.h"
#include "simd/dot_tiles.h"
#include "simd/packed_weight.h"
#include "simd/product.h"

namespace chorale::simd {
namespace {

constexpr std::int64_t tile_rows = 16, tile_columns = 32, dot_step = 32;
// Inner values of a panel that stay in a first-level cache while all rows go past: 32 KiB.
constexpr std::int64_t inner_block = 512;
// Rows that go past it at a time.
constexpr std::int64_t strip_rows = 64;

// Memory of the calling thread, whose workers use it too while it waits. It grows and stays.
float* at_least(Tensor& memory, std::int64_t floats) {
  if (memory.empty() || memory.elements() < floats) memory = Tensor::zeros(DType::float32, {floats});
  return memory.as<float>().data();
}
bfloat16* at_least_narrow(Tensor& memory, std::int64_t values) {
  if (memory.empty() || memory.elements() < values) memory = Tensor::zeros(DType::bfloat16, {values});
  return memory.as<bfloat16>().data();
}

// Rows of bfloat16 as dot_product takes its left operand: whole tiles, zero beyond the matrix. A row is a
// cache line longer than it needs to be, so that the rows of a tile do not fall into the same cache sets.
struct DotOperand {
  bfloat16* data;
  std::int64_t row;
  static std::int64_t row_elements(std::int64_t inner) { return round_up(inner, dot_step) + 32; }
};

DotOperand round_operand(const float* a, std::int64_t a_row, std::int64_t rows, std::int64_t inner,
                         int threads) {
  thread_local Tensor memory;
  const std::int64_t row = DotOperand::row_elements(inner);
  const DotOperand operand{at_least_narrow(memory, round_up(rows, tile_rows) * row), row};
  constexpr std::int64_t few = 1 << 17;  // values that are rounded sooner than handed out
  parallel_for(round_up(rows, tile_rows) / tile_rows, rows * inner <= few ? 1 : threads,
               [&](std::int64_t tile, int) {
                 for (std::int64_t i = tile * tile_rows; i < (tile + 1) * tile_rows; ++i) {
                   bfloat16* to = operand.data + i * row;
                   const std::int64_t count = i < rows ? inner : 0;
                   if (count > 0) from_float(a + i * a_row, DType::bfloat16, to, count);
                   std::fill(to + count, to + round_up(inner, dot_step), bfloat16{});
                 }
               });
  return operand;
}

// rows x columns (at most 32) of sums. Only whole tiles go to `out` directly; what is over goes through a
// tile of its own.
struct DotBlock {
  DotLevel level;
  const bfloat16* left;  // whole tiles of rows
  std::int64_t left_row, rows;
  const bfloat16* panel;
  std::int64_t columns, inner;
  float* out;
  std::int64_t out_row;
  bool accumulate;

  // Rows go past the panel a strip at a time; each strip first asks for its share of the panel that comes
  // next.
  void run_strips(const bfloat16* next) const {
    const std::int64_t values = inner * tile_columns;
    for (std::int64_t row = 0; row < rows; row += strip_rows) {
      DotBlock strip = *this;
      strip.rows = std::min(strip_rows, rows - row);
      strip.left += row * left_row;
      strip.out += row * out_row;
      prefetch(next + values * row / rows, next + values * (row + strip.rows) / rows);
      strip.run();
    }
  }
  void run() const {
    const std::int64_t whole = columns % 16 == 0 ? rows / tile_rows * tile_rows : 0;
    if (whole > 0)
      dot_product(level, {whole, columns, inner}, left, left_row, panel, 2 * tile_columns, out, out_row,
                  accumulate);
    for (std::int64_t row = whole; row < rows; row += tile_rows) run_tile(row);
  }

 private:
  // Into the second-level cache. To ask for what lies beyond the end does no harm.
  static void prefetch(const bfloat16* from, const bfloat16* to) {
    constexpr std::int64_t line = 32;
    for (; from < to; from += line) __builtin_prefetch(from, 0, 2);
  }
  void run_tile(std::int64_t row) const {
    alignas(64) float tile[tile_rows * tile_columns] = {};
    const std::int64_t height = std::min(tile_rows, rows - row);
    for (std::int64_t i = 0; accumulate && i < height; ++i)
      std::copy_n(out + (row + i) * out_row, columns, tile + i * tile_columns);
    dot_product(level, {tile_rows, round_up(columns), inner}, left + row * left_row, left_row, panel,
                2 * tile_columns, tile, tile_columns, accumulate);
    for (std::int64_t i = 0; i < height; ++i)
      std::copy_n(tile + i * tile_columns, columns, out + (row + i) * out_row);
  }
};

DotLevel level_for(DType type) { return type == DType::bfloat16 ? dot_level() : DotLevel::none; }

// Some rows of a, times some panels of a weight.
struct Part {
  const float* a;
  std::int64_t a_row;
  DotOperand rounded;  // of a, where products are of pairs
  DotLevel level;
  DType rounding;

  void run(const WeightProduct& product, std::int64_t row, std::int64_t rows, std::int64_t first_panel,
           std::int64_t last_panel) const {
    const PackedWeight& weight = *product.weight;
    const std::int64_t width = weight.panel_columns();
    for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
      const std::int64_t columns = std::min(width, round_up(weight.columns() - panel * width));
      float* out = product.out + row * product.out_row + panel * width;
      if (level != DotLevel::none)
        run_dot(weight, panel, row, rows, columns, out, product.out_row);
      else if (weight.type() == DType::bfloat16)
        product_pairs({rows, columns, weight.inner(), a + row * a_row, a_row, weight.pairs(panel), out,
                       product.out_row, false});
      if (weight.type() == DType::bfloat16 && rounding == DType::bfloat16)
        round_rows(out, product.out_row, rows, columns);
    }
    if (weight.type() == DType::float32) run_floats(product, row, rows, first_panel, last_panel);
  }

 private:
  void run_dot(const PackedWeight& weight, std::int64_t panel, std::int64_t row, std::int64_t rows,
               std::int64_t columns, float* out, std::int64_t out_row) const {
    const std::int64_t inner = round_up(weight.inner(), dot_step);
    // Few rows take the panel in one go: it is read once, and the processor sees what comes next.
    const bool few = rows < 2 * tile_rows;
    const std::int64_t block = few ? inner : inner_block;
    for (std::int64_t k = 0; k < inner; k += block) {
      const bfloat16* pairs = weight.pairs(panel) + k * tile_columns;
      const std::int64_t width = std::min(block, inner - k);
      const DotBlock product{
          level, rounded.data + row * rounded.row + k, rounded.row, rows, pairs, columns, width, out, out_row,
          k > 0};
      if (few)
        product.run();
      else  // the rest of this panel and the next panel lie behind this block
        product.run_strips(pairs + width * tile_columns);
    }
  }
  // All panels in one call, which gives few rows more columns at a time.
  void run_floats(const WeightProduct& product, std::int64_t row, std::int64_t rows, std::int64_t first_panel,
                  std::int64_t last_panel) const {
    const PackedWeight& weight = *product.weight;
    float* out = product.out + row * product.out_row + first_panel * lanes;
    const std::int64_t columns = (last_panel - first_panel) * lanes;
    simd::product({{rows, columns, weight.inner()},
                   {a + row * a_row, a_row, 1},
                   weight.floats(first_panel),
                   lanes,
                   weight.inner() * lanes,
                   out,
                   product.out_row,
                   false});
    if (rounding == DType::bfloat16) round_rows(out, product.out_row, rows, columns);
  }
};

}  // namespace

void multiply(const float* a, std::int64_t a_row, std::int64_t rows, std::span<const WeightProduct> products,
              DType rounding, int threads) {
  if (rows == 0 || products.empty()) return;
  const std::int64_t inner = products[0].weight->inner();
  if (threads <= 0) threads = default_threads();
  Part part{a, a_row, {}, level_for(products[0].weight->type()), rounding};
  if (part.level != DotLevel::none) part.rounded = round_operand(a, a_row, rows, inner, threads);

  // A task is a block of rows times a stretch of panels: a few tasks for each thread, so that the last ones
  // end together.
  constexpr std::int64_t row_block = 256, tasks_per_thread = 4;
  const std::int64_t row_blocks = (rows + row_block - 1) / row_block;
  std::int64_t panels = 0;
  for (const WeightProduct& product : products) panels += product.weight->panels();
  const std::int64_t wanted = threads == 1 ? 1 : tasks_per_thread * threads;
  const std::int64_t stretch = std::max<std::int64_t>(1, panels * row_blocks / wanted);
  struct Task {
    const WeightProduct* product;
    std::int64_t row, first, last;
  };
  std::vector<Task> tasks;
  for (std::int64_t row = 0; row < rows; row += row_block)
    for (const WeightProduct& product : products)
      for (std::int64_t panel = 0; panel < product.weight->panels(); panel += stretch)
        tasks.push_back({&product, row, panel, std::min(panel + stretch, product.weight->panels())});
  parallel_for(std::ssize(tasks), threads, [&](std::int64_t i, int) {
    const DotScope scope(part.level);
    const Task& task = tasks[static_cast<std::size_t>(i)];
    part.run(*task.product, task.row, std::min(row_block, rows - task.row), task.first, task.last);
  });
}

namespace {

// Two rows, rounded, side by side as pairs; zeros beyond the last row.
void narrow_pair(const Rows& from, std::int64_t first_row, std::int64_t rows, std::int64_t row,
                 std::int64_t column, std::int64_t count, std::uint32_t* to) {
  if (row >= rows) {
    std::fill_n(to, count, 0u);
    return;
  }
  const float* first = from.data + (first_row + row) * from.row + column;
  narrow_pairs(first, row + 1 < rows ? first + from.row : nullptr, count, to);
}

// to[column][row] of some columns (at most 32), rows zero-padded to whole steps.
void transpose_rounded(const Rows& from, std::int64_t first_row, std::int64_t rows, std::int64_t padded,
                       std::int64_t first_column, std::int64_t columns, const DotOperand& to) {
  constexpr std::int64_t block = 16;  // pairs of rows: a cache line of what is written
  std::uint32_t pairs[block][tile_columns];
  for (std::int64_t pair = 0; pair < padded / 2; pair += block) {
    for (std::int64_t i = 0; i < block; ++i)
      narrow_pair(from, first_row, rows, 2 * (pair + i), first_column, columns, pairs[i]);
    for (std::int64_t j = 0; j < columns; ++j) {
      auto* column = reinterpret_cast<std::uint32_t*>(to.data + j * to.row) + pair;
      for (std::int64_t i = 0; i < block; ++i) column[i] = pairs[i][j];
    }
  }
}

// panel[row / 2][32][row % 2] of some columns, rows zero-padded to whole steps.
void pair_rows(const Rows& from, std::int64_t first_row, std::int64_t rows, std::int64_t padded,
               std::int64_t first_column, bfloat16* panel) {
  const std::int64_t width = std::min(tile_columns, from.columns - first_column);
  auto* to = reinterpret_cast<std::uint32_t*>(panel);
  for (std::int64_t i = 0; i < padded; i += 2, to += tile_columns) {
    narrow_pair(from, first_row, rows, i, first_column, width, to);
    std::fill(to + width, to + tile_columns, 0u);
  }
}

// What add_transposed_product multiplies at a time: as many rows as its copies of the operands may take, and
// as many of a's columns.
constexpr std::int64_t row_stretch = 4096, column_stretch = 4096;
constexpr std::int64_t task_columns_a = 256, task_columns_b = 256;

void add_product_of_pairs(const Rows& a, const Rows& b, std::int64_t first, std::int64_t rows, float* sums,
                          std::int64_t sums_row, int threads) {
  const std::int64_t padded = round_up(rows, dot_step);
  const std::int64_t panels = (b.columns + tile_columns - 1) / tile_columns,
                     panel_elements = padded * tile_columns;
  const DotLevel level = dot_level();
  thread_local Tensor memory;
  const std::int64_t left_row = DotOperand::row_elements(rows);
  const std::int64_t left_elements = std::min(column_stretch, round_up(a.columns)) * left_row;
  bfloat16* right = at_least_narrow(memory, panels * panel_elements + left_elements);
  const DotOperand left{right + panels * panel_elements, left_row};
  parallel_for(panels, threads, [&](std::int64_t panel, int) {
    pair_rows(b, first, rows, padded, panel * tile_columns, right + panel * panel_elements);
  });
  for (std::int64_t stretch = 0; stretch < a.columns; stretch += column_stretch) {
    const std::int64_t columns = std::min(column_stretch, a.columns - stretch);
    parallel_for((columns + 31) / 32, threads, [&](std::int64_t i, int) {
      transpose_rounded(a, first, rows, padded, stretch + i * 32,
                        std::min<std::int64_t>(32, columns - i * 32),
                        {left.data + i * 32 * left.row, left.row});
    });
    const std::int64_t a_tasks = (columns + task_columns_a - 1) / task_columns_a;
    const std::int64_t b_tasks = (b.columns + task_columns_b - 1) / task_columns_b;
    parallel_for(a_tasks * b_tasks, threads, [&](std::int64_t task, int) {
      const DotScope scope(level);
      const std::int64_t column = task / b_tasks * task_columns_a, first_b = task % b_tasks * task_columns_b;
      const std::int64_t last_b = std::min(first_b + task_columns_b, b.columns);
      const auto panel = [&](std::int64_t j, std::int64_t k) {
        return right + j / tile_columns * panel_elements + k * tile_columns;
      };
      for (std::int64_t k = 0; k < padded; k += inner_block)
        for (std::int64_t j = first_b; j < last_b; j += tile_columns)
          DotBlock{level,
                   left.data + column * left.row + k,
                   left.row,
                   std::min(task_columns_a, columns - column),
                   panel(j, k),
                   std::min(tile_columns, last_b - j),
                   std::min(inner_block, padded - k),
                   sums + (stretch + column) * sums_row + j,
                   sums_row,
                   true}
              .run_strips(j + tile_columns < last_b ? panel(j + tile_columns, k)
                                                    : panel(first_b, k + inner_block));
    });
  }
}

// Chains of float32: rows are taken a stretch at a time, and both operands are copied so that what a product
// reads lies together.
void add_product_of_floats(const Rows& a, const Rows& b, std::int64_t rows, float* sums,
                           std::int64_t sums_row, int threads) {
  constexpr std::int64_t stretch = 256, task_columns = 48;
  const std::int64_t tasks = (a.columns + task_columns - 1) / task_columns;
  const std::int64_t groups = round_up(b.columns) / lanes;
  thread_local Tensor memory;
  float* right = at_least(memory, round_up(rows, stretch) * groups * lanes);  // [stretches][groups][256][16]
  parallel_for((rows + stretch - 1) / stretch, threads, [&](std::int64_t block, int) {
    const std::int64_t first = block * stretch, count = std::min(stretch, rows - first);
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t width = std::min(lanes, b.columns - group * lanes);
        float* to = right + ((block * groups + group) * stretch + r) * lanes;
        std::copy_n(b.data + (first + r) * b.row + group * lanes, width, to);
        std::fill(to + width, to + lanes, 0.0f);
      }
  });
  parallel_for(tasks, threads, [&](std::int64_t task, int) {
    const std::int64_t column = task * task_columns, columns = std::min(task_columns, a.columns - column);
    const std::int64_t width = groups * lanes;
    std::vector<float> left(static_cast<std::size_t>(task_columns * stretch));
    std::vector<float> out(b.columns % lanes == 0 ? 0 : static_cast<std::size_t>(columns * width));
    float* own = sums + column * sums_row;
    for (std::int64_t i = 0; !out.empty() && i < columns; ++i)
      std::copy_n(own + i * sums_row, b.columns, out.data() + i * width);
    for (std::int64_t first = 0; first < rows; first += stretch) {
      const std::int64_t count = std::min(stretch, rows - first);
      transpose(a.data + first * a.row + column, a.row, count, columns, left.data(), stretch);
      product({{columns, width, count},
               {left.data(), stretch, 1},
               right + first * width,
               lanes,
               stretch * lanes,
               out.empty() ? own : out.data(),
               out.empty() ? sums_row : width,
               true});
    }
    for (std::int64_t i = 0; !out.empty() && i < columns; ++i)
      std::copy_n(out.data() + i * width, b.columns, own + i * sums_row);
  });
}

}  // namespace

void add_transposed_product(const Rows& a, const Rows& b, std::int64_t rows, DType type, float* sums,
                            std::int64_t sums_row, int threads) {
  if (level_for(type) == DotLevel::none) return add_product_of_floats(a, b, rows, sums, sums_row, threads);
  for (std::int64_t first = 0; first < rows; first += row_stretch)
    add_product_of_pairs(a, b, first, std::min(row_stretch, rows - first), sums, sums_row, threads);
}

}  // namespace chorale::simd
