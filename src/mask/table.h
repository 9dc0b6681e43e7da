// Table::Data: a table's values, and the least and the most of any range of them.
#pragma once

#include <limits>
#include <span>
#include <string>
#include <vector>

#include "chorale/mask.h"

namespace chorale {

// Least and most of ranges of an array: level n holds those of 16^(n+1) neighbours. About an eighth of the
// memory of the values themselves, and a query looks at no more than 30 entries a level. NaN takes no part.
template <class T>
class Extremes {
 public:
  struct Extent {
    T least = std::numeric_limits<T>::has_infinity ? std::numeric_limits<T>::infinity()
                                                   : std::numeric_limits<T>::max();
    T most = std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                                  : std::numeric_limits<T>::min();
    void include(const Extent& other) {
      if (other.least < least) least = other.least;
      if (other.most > most) most = other.most;
    }
    bool empty() const { return least > most; }
  };

  Extremes() = default;
  explicit Extremes(std::span<const T> values);
  // Over values[first, end) of the array that this was made of.
  Extent over(std::span<const T> values, std::int64_t first, std::int64_t end) const;

 private:
  static constexpr std::int64_t width = 16;
  Extent at(std::span<const T> values, std::size_t level, std::int64_t i) const {
    if (level > 0) return levels_[level - 1][static_cast<std::size_t>(i)];
    Extent extent;
    extent.include({values[static_cast<std::size_t>(i)], values[static_cast<std::size_t>(i)]});
    return extent;
  }
  std::vector<std::vector<Extent>> levels_;
};
extern template class Extremes<std::int32_t>;
extern template class Extremes<float>;

struct Table::Data {
  std::string name;
  int rank = 1;
  std::int64_t rows = 0, columns = 1;
  bool is_float = false;
  std::vector<std::int32_t> integers;  // one of the two holds rows * columns values
  std::vector<float> floats;
  Extremes<std::int32_t> integer_extremes;
  Extremes<float> float_extremes;
  bool has_nan = false;

  bool same_content(const Data& other) const;
  // Over rows [first_row, last_row] and columns [first_column, last_column], inclusive and inside the table.
  Extremes<std::int32_t>::Extent integers_over(std::int64_t first_row, std::int64_t last_row,
                                               std::int64_t first_column, std::int64_t last_column) const;
  Extremes<float>::Extent floats_over(std::int64_t first_row, std::int64_t last_row,
                                      std::int64_t first_column, std::int64_t last_column) const;
};

}  // namespace chorale
