// What a TensorMap of kernels/params.h holds for the emulated copy engine.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "block.h"

namespace emulation {

// Boxes have rows of 128 bytes, whose 16-byte pieces are swizzled by their address.
inline unsigned swizzled(unsigned address) { return address ^ ((address >> 7 & 7) << 4); }

struct Map {
  static constexpr int dimensions = 5, row_bytes = 128, piece_bytes = 16;
  struct Dimension {
    long long size = 1, stride = 0;  // in elements; the contiguous dimension comes first
    int box = 1;
  };
  using Place = std::array<int, dimensions>;

  unsigned char* data = nullptr;
  int element_bytes = 2;
  int box[dimensions];
  long long size[dimensions], stride[dimensions];  // in bytes

  Map() = default;
  Map(void* tensor, int bytes_of_element, std::array<Dimension, dimensions> of)
      : data(static_cast<unsigned char*>(tensor)), element_bytes(bytes_of_element) {
    of[0].stride = 1;
    for (int d = 0; d < dimensions; ++d) {
      const Dimension& dimension = of[static_cast<std::size_t>(d)];
      box[d] = dimension.box;
      size[d] = dimension.size;
      stride[d] = dimension.stride * element_bytes;
    }
  }
  static Map at(const void* tensor_map) {
    Map map;
    std::memcpy(static_cast<void*>(&map), tensor_map, sizeof map);
    return map;
  }
  template <class TensorMap>
  void write(TensorMap& to) const {
    static_assert(sizeof(Map) <= sizeof to);
    std::memcpy(&to, this, sizeof *this);
  }

  int box_bytes() const { return row_bytes * box[1] * box[2] * box[3] * box[4]; }
  // f(shared, memory) of each of a box's pieces: where it lies in shared memory and in the tensor, or null.
  template <class F>
  void for_each_piece(const Place& first, unsigned shared, F&& f) const {
    for (int row = 0; row < box_bytes() / row_bytes; ++row) {
      bool inside = true;
      long long offset = 0;
      for (int d = 1, rest = row; d < dimensions; rest /= box[d++]) {
        const long long at = first[static_cast<std::size_t>(d)] + rest % box[d];
        inside = inside && at >= 0 && at < size[d];
        offset += at * stride[d];
      }
      for (int byte = 0; byte < row_bytes; byte += piece_bytes) {
        const long long column = first[0] + byte / element_bytes;
        f(shared_place(swizzled(shared + static_cast<unsigned>(row * row_bytes + byte))),
          inside && column < size[0] ? data + offset + column * element_bytes : nullptr);
      }
    }
  }
};

}  // namespace emulation
