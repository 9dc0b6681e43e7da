#include "simd/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/float.h"
#include "base/threads.h"
#include "simd/simd.h"

namespace chorale::simd {
namespace {

constexpr std::int64_t pair_columns = 32;

// Row `index` of [rows, columns] as float32.
void read_row(const TensorView& matrix, std::int64_t index, float* to) {
  const std::int64_t first = index * matrix.stride[0], count = matrix.shape[1];
  if (matrix.stride[1] == 1) {
    const auto* from =
        static_cast<const std::byte*>(matrix.data) + first * static_cast<std::int64_t>(size_of(matrix.dtype));
    return to_float(from, matrix.dtype, to, count);
  }
  for (std::int64_t i = 0; i < count; ++i)
    to[i] = load_element(matrix.data, matrix.dtype, first + i * matrix.stride[1]);
}

// panel[inner][16] from up to 16 rows of `weight`.
void fill_floats(const TensorView& weight, std::int64_t first, float* panel) {
  std::vector<float> row(static_cast<std::size_t>(weight.shape[1]));
  for (std::int64_t c = 0; c < std::min(lanes, weight.shape[0] - first); ++c) {
    read_row(weight, first + c, row.data());
    for (std::int64_t i = 0; i < weight.shape[1]; ++i)
      panel[i * lanes + c] = row[static_cast<std::size_t>(i)];
  }
}

// panel[inner / 2][32][2] from up to 32 rows of `weight`: pairs are moved whole. `pairs` pairs of inner
// values.
void fill_pairs(const TensorView& weight, std::int64_t first, std::int64_t pairs, bfloat16* panel) {
  const std::int64_t rows = std::min(pair_columns, weight.shape[0] - first);
  std::vector<float> row(static_cast<std::size_t>(weight.shape[1]));
  std::vector<std::uint32_t> narrow(static_cast<std::size_t>(pair_columns * pairs));  // [32][pairs]
  for (std::int64_t c = 0; c < rows; ++c) {
    read_row(weight, first + c, row.data());
    from_float(row.data(), DType::bfloat16, narrow.data() + c * pairs, weight.shape[1]);
  }
  auto* to = reinterpret_cast<std::uint32_t*>(panel);
  constexpr std::int64_t block = 16;  // pairs: one cache line of each row
  for (std::int64_t k = 0; k < pairs; k += block)
    for (std::int64_t c = 0; c < pair_columns; ++c)
      for (std::int64_t i = k; i < std::min(k + block, pairs); ++i)
        to[i * pair_columns + c] = narrow[static_cast<std::size_t>(c * pairs + i)];
}

// Two columns' pair of inner values, as they lie side by side, the other way round: the two inner values'
// pair of columns.
std::uint64_t transpose_pairs(std::uint64_t x) {
  return (x & 0xffff00000000ffffu) | (x & 0xffff0000u) << 16 | (x >> 16 & 0xffff0000u);
}

}  // namespace

const float* PackedWeight::floats(std::int64_t panel) const {
  return data_.as<float>().data() + panel * panel_elements();
}
const bfloat16* PackedWeight::pairs(std::int64_t panel) const {
  return data_.as<bfloat16>().data() + panel * panel_elements();
}
std::int64_t PackedWeight::panel_elements() const {
  return panel_columns() * (type() == DType::float32 ? inner_ : round_up(inner_, 32));
}

void PackedWeight::resize(std::int64_t columns, std::int64_t inner, DType type) {
  if (!data_.view().empty() && columns == columns_ && inner == inner_ && type == this->type()) return;
  const std::int64_t width = type == DType::float32 ? lanes : pair_columns;
  data_ =
      Tensor::zeros(type, {round_up(columns, width), type == DType::float32 ? inner : round_up(inner, 32)});
  columns_ = columns, inner_ = inner;
}

void PackedWeight::pack(const TensorView& weight, DType type, int threads) {
  resize(weight.shape[0], weight.shape[1], type);
  parallel_for(panels(), threads, [&](std::int64_t panel, int) {
    if (type == DType::float32)
      fill_floats(weight, panel * lanes, data_.as<float>().data() + panel * panel_elements());
    else
      fill_pairs(weight, panel * pair_columns, round_up(inner_, 32) / 2,
                 data_.as<bfloat16>().data() + panel * panel_elements());
  });
}

void PackedWeight::pack_transposed(const PackedWeight& packed, int threads) {
  resize(packed.inner(), packed.columns(), packed.type());
  if (type() == DType::float32) {
    return parallel_for(panels(), threads, [&](std::int64_t panel, int) {
      float* to = data_.as<float>().data() + panel * panel_elements();
      for (std::int64_t c = 0; c < std::min(lanes, columns_ - panel * lanes); ++c)
        for (std::int64_t i = 0; i < inner_; ++i)
          to[i * lanes + c] = packed.floats(i / lanes)[(panel * lanes + c) * lanes + i % lanes];
    });
  }
  // A block of two columns and two inner values is 64 bits in either layout.
  parallel_for(panels(), threads, [&](std::int64_t panel, int) {
    auto* to = reinterpret_cast<std::uint64_t*>(data_.as<bfloat16>().data() + panel * panel_elements());
    constexpr std::int64_t blocks = pair_columns / 2;  // in a row of either layout
    for (std::int64_t from_panel = 0; from_panel < packed.panels(); ++from_panel) {
      // Its row of the first pair of these columns.
      const auto* from =
          reinterpret_cast<const std::uint64_t*>(packed.pairs(from_panel)) + panel * blocks * blocks;
      for (std::int64_t i = 0; i < blocks; ++i)
        for (std::int64_t c = 0; c < blocks; ++c)
          to[(from_panel * blocks + i) * blocks + c] = transpose_pairs(from[c * blocks + i]);
    }
  });
}

}  // namespace chorale::simd
