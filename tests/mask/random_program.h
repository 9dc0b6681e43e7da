// Random programs for property tests: every operation, and the values at which arithmetic goes wrong.
#pragma once

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "chorale/mask.h"

namespace chorale::testing {

class RandomProgram {
 public:
  explicit RandomProgram(std::uint64_t seed, bool with_score = false)
      : random_(seed),
        with_score_(with_score),
        integers_(make_integers()),
        floats_(make_floats()),
        grid_(make_grid()) {}

  Expr boolean(int depth) {
    if (depth == 0) return pick(8) == 0 ? Expr(pick(2) == 0) : integer(0) < integer(0);
    switch (pick(10)) {
      case 0:
      case 1:
        return boolean(depth - 1) && boolean(depth - 1);
      case 2:
      case 3:
        return boolean(depth - 1) || boolean(depth - 1);
      case 4:
        return !boolean(depth - 1);
      case 5:
        return expr::select(boolean(depth - 1), boolean(depth - 1), boolean(depth - 1));
      case 6:
        return pick(2) == 0 ? boolean(depth - 1) == boolean(depth - 1)
                            : boolean(depth - 1) != boolean(depth - 1);
      case 7:
        return compare(floating(depth - 1), floating(depth - 1));
      default:
        return compare(integer(depth - 1), integer(depth - 1));
    }
  }

  Expr integer(int depth) {
    if (depth == 0) return integer_leaf();
    switch (pick(12)) {
      case 0:
        return integer(depth - 1) + integer(depth - 1);
      case 1:
      case 2:
        return integer(depth - 1) - integer(depth - 1);
      case 3:
        return integer(depth - 1) * integer(depth - 1);
      case 4:
        return integer(depth - 1) / integer(depth - 1);
      case 5:
        return integer(depth - 1) % integer(depth - 1);
      case 6:
        return -integer(depth - 1);
      case 7:
        return expr::abs(integer(depth - 1));
      case 8:
        return expr::min(integer(depth - 1), integer(depth - 1));
      case 9:
        return expr::max(integer(depth - 1), integer(depth - 1));
      case 10:
        return expr::select(boolean(depth - 1), integer(depth - 1), integer(depth - 1));
      default:
        return pick(2) == 0 ? expr::at(integers_, inside(integer(depth - 1), integers_.rows()))
                            : expr::at(grid_, inside(integer(depth - 1), grid_.rows()),
                                       inside(integer(depth - 1), grid_.columns()));
    }
  }

  Expr floating(int depth) {
    if (depth == 0) return float_leaf();
    switch (pick(14)) {
      case 0:
        return floating(depth - 1) + floating(depth - 1);
      case 1:
        return floating(depth - 1) - floating(depth - 1);
      case 2:
      case 3:
        return floating(depth - 1) * floating(depth - 1);
      case 4:
        return floating(depth - 1) / floating(depth - 1);
      case 5:
        return -floating(depth - 1);
      case 6:
        return expr::abs(floating(depth - 1));
      case 7:
        return expr::min(floating(depth - 1), floating(depth - 1));
      case 8:
        return expr::max(floating(depth - 1), floating(depth - 1));
      case 9:
        return expr::select(boolean(depth - 1), floating(depth - 1), floating(depth - 1));
      case 10:
        return expr::tanh(floating(depth - 1));
      case 11:
        return pick(2) == 0 ? expr::exp(floating(depth - 1)) : expr::log(floating(depth - 1));
      case 12:
        return expr::sqrt(floating(depth - 1));
      default:
        return expr::at(floats_, inside(integer(depth - 1), floats_.rows()));
    }
  }

  std::int64_t pick(std::int64_t count) {
    return std::uniform_int_distribution<std::int64_t>(0, count - 1)(random_);
  }
  std::vector<Table> tables() const { return {integers_, floats_, grid_}; }

 private:
  // The index moved into [0, size), in one of the ways people use.
  Expr inside(const Expr& index, std::int64_t size) {
    return pick(2) == 0 ? index % size : expr::max(expr::min(index, size - 1), 0);
  }
  Expr compare(const Expr& x, const Expr& y) {
    switch (pick(6)) {
      case 0:
        return x < y;
      case 1:
        return x <= y;
      case 2:
        return x > y;
      case 3:
        return x >= y;
      case 4:
        return x == y;
      default:
        return x != y;
    }
  }
  Expr integer_leaf() {
    constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min(),
                           most = std::numeric_limits<std::int64_t>::max();
    constexpr std::int64_t edges[] = {
        least, least + 1, most, most - 1, -1, 0, 1, 2, std::int64_t{1} << 32, -(std::int64_t{1} << 31)};
    switch (pick(8)) {
      case 0:
        return expr::b();
      case 1:
        return expr::h();
      case 2:
      case 3:
        return expr::q();
      case 4:
      case 5:
        return expr::k();
      case 6:
        return pick(4) == 0 ? edges[pick(std::size(edges))] : pick(9) - 4;
      default:
        return pick(100) - 30;
    }
  }
  Expr float_leaf() {
    const double infinity = std::numeric_limits<double>::infinity();
    const double edges[] = {0.0, -0.0, infinity, -infinity, 1e-40, 3e38, -1e20, 16777217.0, 0.1, 1.0};
    if (with_score_ && pick(2) == 0) return expr::score();
    switch (pick(4)) {
      case 0:
        return expr::to_float(integer(0));
      case 1:
        return edges[pick(std::size(edges))];
      default:
        return static_cast<double>(pick(1000) - 500) / 64;
    }
  }
  Table make_integers() {
    std::vector<std::int32_t> values(97);
    for (auto& value : values) value = static_cast<std::int32_t>(pick(7));
    values[11] = std::numeric_limits<std::int32_t>::min();
    return Table::integers("ints", values);
  }
  Table make_floats() {
    std::vector<float> values(40);
    for (auto& value : values) value = static_cast<float>(pick(100)) / 8;
    values[5] = std::numeric_limits<float>::quiet_NaN();
    values[23] = -std::numeric_limits<float>::infinity();
    return Table::floats("floats", values);
  }
  Table make_grid() {
    std::vector<std::int32_t> values(4 * 33);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i % 33 / 5);
    return Table::integers_2d("grid", 4, 33, values).value();
  }

  std::mt19937_64 random_;
  bool with_score_;
  Table integers_, floats_, grid_;
};

}  // namespace chorale::testing
