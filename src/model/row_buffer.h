// RowBuffer: a matrix of float32 rows (one a token), and the way that work over rows is handed to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "chorale/tensor.h"
#include "simd/simd.h"

namespace chorale {

// Rows are padded to whole vectors, as products want what they write. Copies share the memory.
class RowBuffer {
 public:
  RowBuffer() = default;
  RowBuffer(std::int64_t rows, std::int64_t columns)
      : memory_(Tensor::zeros(DType::float32, {rows, padded(columns)})),
        data_(static_cast<float*>(memory_.view().data)),
        rows_(rows),
        columns_(columns),
        stride_(memory_.shape(1)) {}
  // Somebody else's float32 rows, each contiguous; for reading, unless they are padded as above.
  static RowBuffer over(const TensorView& rows) {
    RowBuffer buffer;
    buffer.data_ = static_cast<float*>(rows.data);
    buffer.rows_ = rows.shape[0], buffer.columns_ = rows.shape[1], buffer.stride_ = rows.stride[0];
    return buffer;
  }

  float* operator[](std::int64_t row) const { return data_ + row * stride_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  std::int64_t stride() const { return stride_; }
  const Tensor& memory() const { return memory_; }  // [rows, stride]; empty if it is somebody else's
  TensorView view() const { return memory_.view().slice(1, 0, columns_); }

 private:
  // Where rows lie a multiple of 4 KiB apart, what a product writes of a column of tiles falls into one set
  // of the cache: such rows get a cache line more.
  static std::int64_t padded(std::int64_t columns) {
    const std::int64_t whole = simd::round_up(columns);
    return whole % 1024 == 0 ? whole + simd::lanes : whole;
  }

  Tensor memory_;
  float* data_ = nullptr;
  std::int64_t rows_ = 0, columns_ = 0, stride_ = 0;
};

struct RowRange {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

// Calls body(range, threads) for ranges that cover [0, rows): many rows are cut into blocks, one a thread at
// a time, so that a block goes through several operations while it is in cache; fewer stay together, and the
// operations inside may use the threads. How rows are cut changes no bit: every operation treats a row alone.
template <class Body>
void for_row_blocks(std::int64_t rows, int threads, const Body& body) {
  // Each block reads all weights: it must be tall enough to be worth it.
  constexpr std::int64_t least_block = 64, largest_block = 256;
  if (rows == 0) return;
  if (threads <= 0) threads = default_threads();
  const std::int64_t block =
      std::min(largest_block, simd::round_up((rows + threads - 1) / threads, std::int64_t{32}));
  if (block < least_block || threads == 1) return body(RowRange{0, rows}, threads);
  parallel_for((rows + block - 1) / block, threads, [&](std::int64_t i, int) {
    body(RowRange{i * block, std::min(rows, (i + 1) * block)}, 1);
  });
}

// Calls body(row) for each row of a range, on at most `threads` threads.
template <class Body>
void for_each_row(RowRange range, int threads, const Body& body) {
  constexpr std::int64_t few = 4;  // are done sooner than handed out
  const std::int64_t tasks = range.size() < few ? 1 : std::min<std::int64_t>(range.size(), threads);
  parallel_for(tasks, threads, [&](std::int64_t task, int) {
    const std::int64_t end = range.begin + range.size() * (task + 1) / tasks;
    for (std::int64_t row = range.begin + range.size() * task / tasks; row < end; ++row) body(row);
  });
}

}  // namespace chorale
