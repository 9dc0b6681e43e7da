#include "implementations/cpu/dot_rows.h"

#include <algorithm>
#include <vector>

#include "simd/simd.h"

namespace chorale::tiled {

void add_row_without_hidden(simd::DotLevel level, const bfloat16* row, const bfloat16* right,
                            std::int64_t columns, const std::uint8_t* visible, std::int64_t count,
                            float* sums) {
  constexpr std::int64_t rows = simd::lanes;  // the smallest product there is
  const std::int64_t inner = simd::round_up(count, 32);
  std::vector<bfloat16> shown(right, right + inner * columns), left(static_cast<std::size_t>(rows * inner));
  for (std::int64_t k = 0; k < count; ++k)
    if (!visible[k])
      for (std::int64_t c = 0; c < columns; ++c)
        shown[static_cast<std::size_t>((k / 2 * columns + c) * 2 + k % 2)] = {0};
  std::copy_n(row, inner, left.begin());
  std::vector<float> out(static_cast<std::size_t>(rows * columns));
  std::copy_n(sums, columns, out.begin());
  simd::dot_product(level, {rows, columns, inner}, left.data(), inner, shown.data(), 2 * columns, out.data(),
                    columns, true);
  std::copy_n(out.begin(), columns, sums);
}

}  // namespace chorale::tiled
