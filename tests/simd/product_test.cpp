// Matrix products against chains of std::fma, to the bit.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "simd/product.h"
#include "simd/simd.h"

namespace chorale {
namespace {

std::vector<float> random_values(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

float chain(const float* a, std::int64_t a_step, const float* b, std::int64_t b_step, std::int64_t count,
            float start) {
  for (std::int64_t p = 0; p < count; ++p) start = std::fma(a[p * a_step], b[p * b_step], start);
  return start;
}

TEST(Product, IsOneChainPerElement) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 12, 13, 17, 31})
    for (const std::int64_t columns : {1, 15, 16, 17, 48, 64, 80})
      for (const std::int64_t inner : {0, 1, 7, 64})
        for (const bool transposed : {false, true})
          for (const bool accumulate : {false, true}) {
            const std::int64_t width = simd::round_up(columns);
            const auto a = random_values(static_cast<std::size_t>(rows * inner) + 1, 1);
            const auto b = random_values(static_cast<std::size_t>(inner * width) + 1, 2);
            auto out = random_values(static_cast<std::size_t>(rows * width), 3);
            const auto before = out;
            const simd::Operand operand =
                transposed ? simd::Operand{a.data(), 1, rows} : simd::Operand{a.data(), inner, 1};
            simd::multiply({rows, columns, inner}, operand, b.data(), width, out.data(), width, accumulate);
            for (std::int64_t i = 0; i < rows; ++i)
              for (std::int64_t j = 0; j < columns; ++j) {
                const float start = accumulate ? before[i * width + j] : 0.0f;
                ASSERT_EQ(out[i * width + j],
                          chain(a.data() + i * operand.row, operand.inner, b.data() + j, width, inner, start))
                    << rows << "x" << columns << "x" << inner << " at " << i << ", " << j;
              }
          }
}

TEST(Product, LeavesInvisiblePairsOut) {
  constexpr std::int64_t rows = 9, columns = 40, inner = 23, width = 48;
  auto a = random_values(rows * inner, 4), b = random_values(inner * width, 5);
  std::vector<std::uint8_t> visible(rows * inner);
  std::mt19937 random(6);
  for (auto& v : visible) v = random() % 2;
  // A row of b that nobody sees, and the hidden entries of a, hold NaN.
  for (std::int64_t i = 0; i < rows; ++i) visible[i * inner + 11] = 0;
  for (std::int64_t j = 0; j < width; ++j) b[11 * width + j] = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t p = 0; p < a.size(); ++p)
    if (!visible[p]) a[p] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> out(rows * width, -0.0f);
  simd::multiply_visible({rows, columns, inner}, {a.data(), inner, 1}, b.data(), width, visible.data(),
                         out.data(), width, true);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < columns; ++j) {
      float expected = -0.0f;
      for (std::int64_t p = 0; p < inner; ++p)
        if (visible[i * inner + p]) expected = std::fma(a[i * inner + p], b[p * width + j], expected);
      ASSERT_EQ(out[i * width + j], expected);
    }
}

// Rows that lie apart, in memory that ends with them.
struct Rows {
  Rows(std::int64_t count, std::int64_t columns, DType dtype)
      : values(static_cast<std::size_t>(count)), memory(values.size()) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = random_values(static_cast<std::size_t>(columns), static_cast<unsigned>(20 + i));
      memory[i].resize(values[i].size() * size_of(dtype));
      simd::from_float(values[i].data(), dtype, memory[i].data(), columns);
      simd::to_float(memory[i].data(), dtype, values[i].data(), columns);  // as rounded
      pointers.push_back(memory[i].data());
    }
    // Read, but nobody looks at what comes of it.
    pointers.resize(static_cast<std::size_t>(simd::round_up(count)), pointers[0]);
  }
  std::vector<std::vector<float>> values;
  std::vector<std::vector<std::byte>> memory;
  std::vector<const std::byte*> pointers;
};

class RowsProduct : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, RowsProduct, testing::Values(DType::float32, DType::bfloat16, DType::float16),
                         [](const auto& type) { return std::string(name(type.param)); });

TEST_P(RowsProduct, TransposedIsOneChainPerElement) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16})
    for (const std::int64_t b_rows : {1, 8, 15, 16, 17, 33, 64})
      for (const std::int64_t columns : {1, 7, 8, 15, 16, 24, 40, 128}) {
        const Rows b(b_rows, columns, GetParam());
        const std::int64_t width = simd::round_up(b_rows) + 1;
        const auto a = random_values(static_cast<std::size_t>(rows * columns), 11);
        std::vector<float> out(static_cast<std::size_t>(rows * width), 7.0f);
        simd::product_rows_transposed(
            {rows, a.data(), columns, b.pointers.data(), GetParam(), b_rows, columns, out.data(), width});
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t j = 0; j < b_rows; ++j)
            ASSERT_EQ(out[i * width + j], chain(a.data() + i * columns, 1,
                                                b.values[static_cast<std::size_t>(j)].data(), 1, columns, 0))
                << rows << "x" << b_rows << "x" << columns << " at " << i << ", " << j;
          ASSERT_EQ(out[i * width + width - 1], 7.0f);
        }
      }
}

TEST_P(RowsProduct, GoesOnFromOut) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16})
    for (const std::int64_t b_rows : {1, 3, 64})
      for (const std::int64_t columns : {1, 7, 8, 15, 16, 24, 80, 128, 136}) {
        const Rows b(b_rows, columns, GetParam());
        const std::int64_t width = simd::round_up(columns) + 1;
        const auto a = random_values(static_cast<std::size_t>(rows * b_rows), 12);
        auto out = random_values(static_cast<std::size_t>(rows * width), 13);
        const auto before = out;
        simd::product_rows(
            {rows, a.data(), b_rows, b.pointers.data(), GetParam(), b_rows, columns, out.data(), width});
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t c = 0; c < columns; ++c) {
            float expected = before[i * width + c];
            for (std::int64_t j = 0; j < b_rows; ++j)
              expected = std::fma(a[i * b_rows + j], b.values[static_cast<std::size_t>(j)][c], expected);
            ASSERT_EQ(out[i * width + c], expected)
                << rows << "x" << b_rows << "x" << columns << " at " << i << ", " << c;
          }
          ASSERT_EQ(out[i * width + width - 1], before[i * width + width - 1]);
        }
      }
}

TEST(Transpose, Transposes) {
  for (const std::int64_t rows : {1, 5, 16, 33})
    for (const std::int64_t columns : {1, 7, 64}) {
      const auto in = random_values(static_cast<std::size_t>(rows * columns), 10);
      std::vector<float> out(static_cast<std::size_t>(columns * 40));
      simd::transpose(in.data(), columns, rows, columns, out.data(), 40);
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j) ASSERT_EQ(out[j * 40 + i], in[i * columns + j]);
    }
}

}  // namespace
}  // namespace chorale
