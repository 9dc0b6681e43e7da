#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "mask/program.h"
#include "mask/table.h"

namespace chorale {
namespace {

TEST(Table, ExtremesOfEveryRange) {
  std::mt19937 random(3);
  for (const std::size_t size : {1u, 2u, 15u, 16u, 17u, 33u, 255u, 256u, 257u, 300u}) {
    std::vector<std::int32_t> values(size);
    for (auto& value : values) value = static_cast<std::int32_t>(random());
    const Table table = Table::integers("t", values);
    for (std::size_t first = 0; first < size; ++first) {
      std::int32_t least = values[first], most = values[first];
      for (std::size_t last = first; last < size; ++last) {
        least = std::min(least, values[last]);
        most = std::max(most, values[last]);
        const auto extent = table.data().integers_over(static_cast<std::int64_t>(first),
                                                       static_cast<std::int64_t>(last), 0, 0);
        ASSERT_EQ(extent.least, least);
        ASSERT_EQ(extent.most, most);
      }
    }
  }
}

TEST(Table, ExtremesOfRectangles) {
  constexpr std::int64_t rows = 7, columns = 37;
  std::vector<float> values(rows * columns);
  std::mt19937 random(4);
  for (float& value : values)
    value = random() % 11 == 0 ? std::nanf("") : static_cast<float>(random() % 1000);
  const Table table = Table::floats_2d("t", rows, columns, values).value();
  for (int i = 0; i < 5000; ++i) {
    const auto pair = [&](std::int64_t size) {
      return std::minmax<std::int64_t>(
          {static_cast<std::int64_t>(random() % size), static_cast<std::int64_t>(random() % size)});
    };
    const auto [first_row, last_row] = pair(rows);
    const auto [first_column, last_column] = i % 5 == 0
                                                 ? std::pair<std::int64_t, std::int64_t>(0, columns - 1)
                                                 : std::pair<std::int64_t, std::int64_t>(pair(columns));
    float least = INFINITY, most = -INFINITY;
    for (std::int64_t r = first_row; r <= last_row; ++r)
      for (std::int64_t c = first_column; c <= last_column; ++c) {
        const float value = values[static_cast<std::size_t>(r * columns + c)];
        least = std::fmin(least, value);
        most = std::fmax(most, value);
      }
    const auto extent = table.data().floats_over(first_row, last_row, first_column, last_column);
    ASSERT_EQ(extent.least, least);
    ASSERT_EQ(extent.most, most);
  }
  EXPECT_TRUE(table.data().has_nan);
}

TEST(Table, ShapesMustFit) {
  const auto error = [](std::int64_t rows, std::int64_t columns, std::vector<std::int32_t> values) {
    return Table::integers_2d("t", rows, columns, std::move(values)).status().message();
  };
  EXPECT_EQ(error(2, 2, {1, 2, 3}), "table t: 2 rows of 2 columns do not make 3 values");
  EXPECT_EQ(error(-1, 2, {}), "table t: -1 rows of 2 columns: needs at least 0 rows and 1 column");
  EXPECT_EQ(error(1, 0, {}), "table t: 1 rows of 0 columns: needs at least 0 rows and 1 column");
  EXPECT_NE(error(std::int64_t{1} << 62, 4, {1}), "") << "sizes whose product overflows";
  EXPECT_TRUE(Table::integers_2d("t", 0, 5, {}).has_value());
}

// The check rejects exactly when some access of the box is outside, for indices that are one variable and
// constants.
TEST(Table, AccessesAreCheckedBeforeTheyHappen) {
  const Table table = Table::integers("t", std::vector<std::int32_t>(10));
  const Table grid = Table::integers_2d("g", 3, 10, std::vector<std::int32_t>(30)).value();
  const std::pair<Expr, std::int64_t (*)(std::int64_t)> indices[] = {
      {expr::k(), [](std::int64_t k) { return k; }},
      {expr::k() - 3, [](std::int64_t k) { return k - 3; }},
      {expr::k() / 2, [](std::int64_t k) { return k >= 0 ? k / 2 : -((1 - k) / 2); }},
      {expr::max(expr::k() - 1, 0), [](std::int64_t k) { return std::max<std::int64_t>(k - 1, 0); }},
      {9 - expr::k(), [](std::int64_t k) { return 9 - k; }},
      {expr::min(expr::abs(expr::k()), 9),
       [](std::int64_t k) { return std::min<std::int64_t>(std::abs(k), 9); }},
  };
  for (const auto& [index, value] : indices) {
    const Mask one = Mask::from(expr::at(table, index) == 0).value(),
               two = Mask::from(expr::at(grid, expr::h(), index) == 0).value();
    for (std::int64_t first = -4; first < 24; ++first)
      for (std::int64_t last = first; last < 24; ++last) {
        bool inside = true;
        for (std::int64_t k = first; k <= last; ++k) inside = inside && value(k) >= 0 && value(k) < 10;
        EXPECT_EQ(check_table_accesses(one.program(), {.k = {first, last}}).is_ok(), inside)
            << one.to_string() << first << " " << last;
        EXPECT_EQ(check_table_accesses(two.program(), {.h = {0, 2}, .k = {first, last}}).is_ok(), inside);
        EXPECT_FALSE(check_table_accesses(two.program(), {.h = {0, 3}, .k = {first, last}}).is_ok());
      }
  }
  const Status status =
      check_table_accesses(Mask::from(expr::at(table, expr::q() - 1) == 0).value().program(), {.q = {0, 63}});
  EXPECT_EQ(status.code(), Code::out_of_range);
  EXPECT_EQ(status.message(), "table t: index q - 1 goes from -1 to 62, but the table has 10 values");
  EXPECT_EQ(
      check_table_accesses(Mask::from(expr::at(grid, expr::b(), 12) == 0).value().program(), {}).message(),
      "table g: column index 12 goes from 12 to 12, but the table has 10 columns");
  EXPECT_FALSE(
      check_table_accesses(Mask::from(expr::at(Table::integers("e", {}), 0) == 0).value().program(), {})
          .is_ok());
}

}  // namespace
}  // namespace chorale
