// The two things that attention is made of, in float64: rows read from tensors, and one query's softmax over
// its keys.
//
// Written to be read: one element at a time, nothing shared with the kernels that it judges.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <vector>

#include "chorale/implementation.h"
#include "chorale/tensor.h"
#include "mask/program.h"

namespace chorale::eager {

struct Matrix {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> values;  // row-major

  static Matrix zeros(std::int64_t rows, std::int64_t columns) {
    return {rows, columns, std::vector<double>(static_cast<std::size_t>(rows * columns))};
  }
  std::span<double> row(std::int64_t i) {
    return std::span(values).subspan(begin(i), static_cast<std::size_t>(columns));
  }
  std::span<const double> row(std::int64_t i) const {
    return std::span(values).subspan(begin(i), static_cast<std::size_t>(columns));
  }

 private:
  std::size_t begin(std::int64_t i) const { return static_cast<std::size_t>(i * columns); }
};

// view[index..., :] as float64.
void read_row(const TensorView& view, std::initializer_list<std::int64_t> index, std::span<double> row);
// double -> float32 -> the view's type into view[index..., :]. (float32 first, as every kernel's accumulator
// is.)
void write_row(const TensorView& view, std::initializer_list<std::int64_t> index,
               std::span<const double> row);

// One head of a sequence's keys (or values) in logical order: [kv_len, columns]. `scales` is empty unless
// they are codes of an 8-bit type.
Matrix read_keys(const Plan& plan, int sequence, const TensorView& keys, const TensorView& scales,
                 int kv_head);

double dot(std::span<const double> x, std::span<const double> y);
// y += factor * x
void add_scaled(double factor, std::span<const double> x, std::span<double> y);

// One query's view of its sequence's keys.
struct SoftmaxRow {
  std::vector<std::uint8_t> visible;  // [kv_len]
  std::vector<double> scaled;  // scale * (query . key); 0 where hidden, so that a hidden NaN stays hidden
  std::vector<double> score;   // score program of `scaled`; -inf where hidden
  std::vector<double> weight;  // exp(score - lse); 0 where hidden
  double sink_weight = 0;      // exp(sink - lse)
  double lse = 0;              // -inf if nothing is visible
};
// `problem` with its tables bound; `at.h` counts from first_query_head, at.k is ignored.
SoftmaxRow softmax_row(const Problem& problem, Point at, std::span<const double> query, const Matrix& keys,
                       std::optional<double> sink);

}  // namespace chorale::eager
