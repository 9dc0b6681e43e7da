// RowBuffer: a matrix of float32 rows (one a token), and the way that work over rows is handed to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "chorale/tensor.h"
#include "simd/simd.h"

namespace chorale {

// Rows are padded to whole vectors, as simd::multiply wants its operands. Copies share the memory.
class RowBuffer {
 public:
  RowBuffer() = default;
  RowBuffer(std::int64_t rows, std::int64_t columns)
      : memory_(Tensor::zeros(DType::float32, {rows, simd::round_up(columns)})), columns_(columns) {}

  float* operator[](std::int64_t row) const {
    return static_cast<float*>(memory_.view().data) + row * stride();
  }
  std::int64_t rows() const { return memory_.shape(0); }
  std::int64_t columns() const { return columns_; }
  std::int64_t stride() const { return memory_.shape(1); }
  const Tensor& memory() const { return memory_; }  // [rows, stride]
  TensorView view() const { return memory_.view().slice(1, 0, columns_); }

 private:
  Tensor memory_;
  std::int64_t columns_ = 0;
};

struct RowRange {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

// Calls body(range, threads) for ranges that cover [0, rows): many rows are cut into blocks, one a thread at
// a time; few stay together, and the products inside may use the threads. How rows are cut changes no bit:
// every operation treats a row alone.
template <class Body>
void for_row_blocks(std::int64_t rows, int threads, const Body& body) {
  constexpr std::int64_t few = 32, largest_block = 96;
  if (rows == 0) return;
  if (threads <= 0) threads = default_threads();
  if (rows <= few || threads == 1) return body(RowRange{0, rows}, threads);
  const std::int64_t block = std::min(largest_block, (rows + threads - 1) / threads);
  parallel_for((rows + block - 1) / block, threads, [&](std::int64_t i, int) {
    body(RowRange{i * block, std::min(rows, (i + 1) * block)}, 1);
  });
}

}  // namespace chorale
