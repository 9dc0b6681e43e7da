// Products of bfloat16 pairs on whatever this processor has: against float64, and to the bit against
// themselves.
#include "simd/dot_tiles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "base/float.h"
#include "simd/simd.h"

namespace chorale {
namespace {

std::vector<bfloat16> random_values(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<bfloat16> values(static_cast<std::size_t>(count));
  for (bfloat16& value : values) value = from_float<bfloat16>(normal(random));
  return values;
}

// The levels that can run here: the best one and those below it.
std::vector<simd::DotLevel> levels() {
  if (simd::dot_level() == simd::DotLevel::amx) return {simd::DotLevel::avx512_bf16, simd::DotLevel::amx};
  if (simd::dot_level() == simd::DotLevel::avx512_bf16) return {simd::DotLevel::avx512_bf16};
  return {};
}

std::vector<const bfloat16*> rows_of(const std::vector<bfloat16>& matrix, std::int64_t rows,
                                     std::int64_t columns) {
  std::vector<const bfloat16*> pointers;
  for (std::int64_t i = 0; i < rows; ++i) pointers.push_back(matrix.data() + i * columns);
  return pointers;
}

class DotTiles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (levels().empty())
      GTEST_SKIP() << "this processor has neither AMX nor AVX-512 BF16, or CHORALE_SIMD forbids them";
  }
};

TEST_F(DotTiles, Packs) {
  for (const std::int64_t rows : {1, 7, 16, 33, 128})
    for (const std::int64_t columns : {1, 3, 10, 16, 32, 66, 128}) {
      const auto in = random_values(rows * columns, 1);
      const auto at = [&](std::int64_t i, std::int64_t j) {
        return i < rows && j < columns ? in[static_cast<std::size_t>(i * columns + j)] : bfloat16{0};
      };
      const std::int64_t padded_columns = simd::round_up(columns), padded_rows = simd::round_up(rows, 32);
      std::vector<bfloat16> right(static_cast<std::size_t>(padded_rows * padded_columns), bfloat16{0x7fc0});
      simd::pack_pairs(rows_of(in, rows, columns).data(), rows, columns, right.data(), 2 * padded_columns);
      for (std::int64_t i = 0; i < padded_rows; ++i)
        for (std::int64_t j = 0; j < padded_columns; ++j)
          ASSERT_EQ(right[static_cast<std::size_t>((i / 2 * padded_columns + j) * 2 + i % 2)], at(i, j))
              << i << ", " << j;

      const std::int64_t width = simd::round_up(rows), inner = simd::round_up(columns, 32);
      std::vector<bfloat16> transposed(static_cast<std::size_t>(width * inner), bfloat16{0x7fc0});
      simd::pack_pairs_transposed(rows_of(in, rows, columns).data(), rows, columns, transposed.data(),
                                  2 * width);
      for (std::int64_t i = 0; i < width; ++i)
        for (std::int64_t j = 0; j < inner; ++j)
          ASSERT_EQ(transposed[static_cast<std::size_t>((j / 2 * width + i) * 2 + j % 2)], at(i, j))
              << i << ", " << j;
    }
}

TEST_F(DotTiles, Multiplies) {
  for (const simd::DotLevel level : levels())
    for (const std::int64_t rows : {16, 32, 48, 112})
      for (const std::int64_t columns : {16, 32, 48, 128})
        for (const std::int64_t inner : {32, 64, 128})
          for (const bool accumulate : {false, true}) {
            const auto left = random_values(rows * inner, 2), plain = random_values(inner * columns, 3);
            std::vector<bfloat16> right(plain.size());
            simd::pack_pairs(rows_of(plain, inner, columns).data(), inner, columns, right.data(),
                             2 * columns);
            std::vector<float> out(static_cast<std::size_t>(rows * columns), 0.5f),
                one(static_cast<std::size_t>(16 * columns), 0.5f);
            const simd::DotScope scope(level);
            simd::dot_product(level, {rows, columns, inner}, left.data(), inner, right.data(), 2 * columns,
                              out.data(), columns, accumulate);
            for (std::int64_t i = 0; i < rows; ++i)
              for (std::int64_t j = 0; j < columns; ++j) {
                double exact = accumulate ? 0.5 : 0.0, magnitude = std::abs(exact);
                for (std::int64_t k = 0; k < inner; ++k) {
                  const double product =
                      static_cast<double>(to_float(left[static_cast<std::size_t>(i * inner + k)])) *
                      to_float(plain[static_cast<std::size_t>(k * columns + j)]);
                  exact += product;
                  magnitude += std::abs(product);
                }
                ASSERT_NEAR(out[static_cast<std::size_t>(i * columns + j)], exact, magnitude * 0x1p-22)
                    << i << ", " << j;
              }
            // The last sixteen rows alone: the same bits.
            simd::dot_product(level, {16, columns, inner}, left.data() + (rows - 16) * inner, inner,
                              right.data(), 2 * columns, one.data(), columns, accumulate);
            for (std::int64_t i = 0; i < 16 * columns; ++i)
              ASSERT_EQ(one[static_cast<std::size_t>(i)],
                        out[static_cast<std::size_t>((rows - 16) * columns + i)]);
          }
}

// (A B)^T = B^T A^T, to the bit.
TEST_F(DotTiles, TheSideOfAnOperandChangesNothing) {
  constexpr std::int64_t rows = 32, columns = 48, inner = 128;
  const auto left = random_values(rows * inner, 4), plain = random_values(inner * columns, 5);
  std::vector<bfloat16> right(plain.size()), left_of_plain(plain.size()), right_of_left(left.size());
  simd::pack_pairs(rows_of(plain, inner, columns).data(), inner, columns, right.data(), 2 * columns);
  for (std::int64_t k = 0; k < inner; ++k)
    for (std::int64_t j = 0; j < columns; ++j)
      left_of_plain[static_cast<std::size_t>(j * inner + k)] =
          plain[static_cast<std::size_t>(k * columns + j)];
  simd::pack_pairs_transposed(rows_of(left, rows, inner).data(), rows, inner, right_of_left.data(), 2 * rows);
  for (const simd::DotLevel level : levels()) {
    std::vector<float> out(static_cast<std::size_t>(rows * columns)), transposed(out.size());
    const simd::DotScope scope(level);
    simd::dot_product(level, {rows, columns, inner}, left.data(), inner, right.data(), 2 * columns,
                      out.data(), columns, false);
    simd::dot_product(level, {columns, rows, inner}, left_of_plain.data(), inner, right_of_left.data(),
                      2 * rows, transposed.data(), rows, false);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        ASSERT_EQ(out[static_cast<std::size_t>(i * columns + j)],
                  transposed[static_cast<std::size_t>(j * rows + i)]);
  }
}

}  // namespace
}  // namespace chorale
