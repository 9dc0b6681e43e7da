#include "mask/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

namespace chorale {

template <class T>
Extremes<T>::Extremes(std::span<const T> values) {
  auto size = static_cast<std::int64_t>(values.size());
  for (std::size_t level = 0; size > width; ++level) {
    std::vector<Extent> above(static_cast<std::size_t>((size + width - 1) / width));
    for (std::int64_t i = 0; i < size; ++i)
      above[static_cast<std::size_t>(i / width)].include(at(values, level, i));
    size = static_cast<std::int64_t>(above.size());
    levels_.push_back(std::move(above));
  }
}

template <class T>
typename Extremes<T>::Extent Extremes<T>::over(std::span<const T> values, std::int64_t first,
                                               std::int64_t end) const {
  Extent extent;
  for (std::size_t level = 0;; ++level) {
    // Take what does not fill a group of the level above; the top level has nothing above it.
    const bool top = level == levels_.size();
    while (first < end && (top || first % width != 0)) extent.include(at(values, level, first++));
    while (first < end && end % width != 0) extent.include(at(values, level, --end));
    if (first == end) return extent;
    first /= width;
    end /= width;
  }
}

template class Extremes<std::int32_t>;
template class Extremes<float>;

namespace {

// The rows of a rectangle lie together where it spans all columns; else each is its own range.
template <class T>
typename Extremes<T>::Extent extent_of(const Extremes<T>& extremes, std::span<const T> values,
                                       std::int64_t columns, std::int64_t first_row, std::int64_t last_row,
                                       std::int64_t first_column, std::int64_t last_column) {
  if (first_column == 0 && last_column == columns - 1)
    return extremes.over(values, first_row * columns, (last_row + 1) * columns);
  typename Extremes<T>::Extent extent;
  for (std::int64_t row = first_row; row <= last_row; ++row)
    extent.include(extremes.over(values, row * columns + first_column, row * columns + last_column + 1));
  return extent;
}

Status check_shape(const std::string& name, std::int64_t rows, std::int64_t columns, std::size_t values) {
  if (rows < 0 || columns < 1)
    return Status::invalid_argument(fmt::format(
        "table {}: {} rows of {} columns: needs at least 0 rows and 1 column", name, rows, columns));
  if (static_cast<__int128>(rows) * columns != static_cast<__int128>(values))
    return Status::invalid_argument(
        fmt::format("table {}: {} rows of {} columns do not make {} values", name, rows, columns, values));
  return Status::ok();
}

template <class T>
std::shared_ptr<const Table::Data> make_data(std::string name, int rank, std::int64_t rows,
                                             std::int64_t columns, std::vector<T> values) {
  auto data = std::make_shared<Table::Data>();
  data->name = std::move(name);
  data->rank = rank;
  data->rows = rows;
  data->columns = columns;
  if constexpr (std::is_same_v<T, float>) {
    data->is_float = true;
    data->has_nan = std::any_of(values.begin(), values.end(), [](float x) { return std::isnan(x); });
    data->float_extremes = Extremes<float>(values);
    data->floats = std::move(values);
  } else {
    data->integer_extremes = Extremes<std::int32_t>(values);
    data->integers = std::move(values);
  }
  return data;
}

}  // namespace

bool Table::Data::same_content(const Data& other) const {
  const auto same_bits = [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
  };
  return name == other.name && rank == other.rank && rows == other.rows && columns == other.columns &&
         is_float == other.is_float && integers == other.integers &&
         std::equal(floats.begin(), floats.end(), other.floats.begin(), other.floats.end(), same_bits);
}

Extremes<std::int32_t>::Extent Table::Data::integers_over(std::int64_t first_row, std::int64_t last_row,
                                                          std::int64_t first_column,
                                                          std::int64_t last_column) const {
  return extent_of<std::int32_t>(integer_extremes, integers, columns, first_row, last_row, first_column,
                                 last_column);
}
Extremes<float>::Extent Table::Data::floats_over(std::int64_t first_row, std::int64_t last_row,
                                                 std::int64_t first_column, std::int64_t last_column) const {
  return extent_of<float>(float_extremes, floats, columns, first_row, last_row, first_column, last_column);
}

Table Table::integers(std::string name, std::vector<std::int32_t> values) {
  const auto rows = static_cast<std::int64_t>(values.size());
  return Table(make_data(std::move(name), 1, rows, 1, std::move(values)));
}
Table Table::floats(std::string name, std::vector<float> values) {
  const auto rows = static_cast<std::int64_t>(values.size());
  return Table(make_data(std::move(name), 1, rows, 1, std::move(values)));
}
Result<Table> Table::integers_2d(std::string name, std::int64_t rows, std::int64_t columns,
                                 std::vector<std::int32_t> values) {
  CHORALE_RETURN_IF_ERROR(check_shape(name, rows, columns, values.size()));
  return Table(make_data(std::move(name), 2, rows, columns, std::move(values)));
}
Result<Table> Table::floats_2d(std::string name, std::int64_t rows, std::int64_t columns,
                               std::vector<float> values) {
  CHORALE_RETURN_IF_ERROR(check_shape(name, rows, columns, values.size()));
  return Table(make_data(std::move(name), 2, rows, columns, std::move(values)));
}

const std::string& Table::name() const { return data_->name; }
bool Table::is_float() const { return data_->is_float; }
int Table::rank() const { return data_->rank; }
std::int64_t Table::rows() const { return data_->rows; }
std::int64_t Table::columns() const { return data_->columns; }

}  // namespace chorale
