#include "implementations/cuda/plan_tables.h"

#include <algorithm>
#include <cstring>

#include "mask/emit_cuda.h"
#include "mask/table.h"

namespace chorale::cuda {
namespace {

// Of the mask, then of the score.
template <class F>
void for_each_table(const Problem& problem, F&& f) {
  for (const Program* program : {&problem.mask.program(), &problem.score.program()})
    for (const Table& table : program->tables()) f(table);
}

// A table of no values is never read where it counts: one value stands there for positions out of bounds.
std::size_t value_bytes(const Table& table) {
  const std::int64_t values = std::max<std::int64_t>(1, table.rows() * table.columns());
  return (4 * static_cast<std::size_t>(values) + 15) / 16 * 16;
}
std::size_t room_for(const Table& table) {
  return value_bytes(table) + (table.is_float() ? 0 : 2 * value_bytes(table) + 64);
}

template <class T>
void put(std::byte* to, const std::vector<T>& values) {
  if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
}

}  // namespace

bool has_tables(const Problem& problem) {
  return !problem.mask.program().tables().empty() || !problem.score.program().tables().empty();
}

std::size_t room_for_tables(const Problem& problem) {
  std::size_t bytes = 0;
  for_each_table(problem, [&](const Table& table) { bytes += room_for(table); });
  return bytes;
}

void write_tables(const Problem& problem, std::byte* to) {
  for_each_table(problem, [&](const Table& table) {
    const Table::Data& data = table.data();
    std::memset(to, 0, value_bytes(table));
    if (data.is_float)
      put(to, data.floats);
    else
      put(to, data.integers);
    put(to + value_bytes(table), table_tree(table));
    to += room_for(table);
  });
}

void write_table_views(const Problem& problem, DevicePointer tables, kernels::TableView* to) {
  for_each_table(problem, [&](const Table& table) {
    *to++ = {reinterpret_cast<const void*>(tables),
             reinterpret_cast<const void*>(tables + value_bytes(table)),
             std::max(1, static_cast<int>(device_rows(table))),
             std::max(1, static_cast<int>(device_columns(table)))};
    tables += room_for(table);
  });
}

}  // namespace chorale::cuda
