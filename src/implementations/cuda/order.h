// The constants of this implementation's order of arithmetic (docs/numerics.md), chosen here and nowhere
// else. Changing one changes bits, and the fingerprint with them.
#pragma once

namespace chorale::cuda {

// T: keys that share one step of the online softmax.
constexpr int tile_keys(int head_dim, int value_dim) {
  return head_dim <= 128 && value_dim <= 128 ? 128 : 64;
}

// C: keys whose partial state starts from nothing. The running total of wide values does not fit in registers
// beside the chunk's, so they are merged less often.
constexpr int chunk_keys(int value_dim) { return value_dim <= 128 ? 2048 : 4096; }

// Rows of a block of the forward kernel: query positions times query heads of a group. Changes the speed
// only.
constexpr int block_rows = 128;
constexpr int decode_rows = 32;  // at most, of the decode kernel

struct Order {
  int tile = 0, chunk = 0;
  bool operator==(const Order&) const = default;
};
constexpr Order order_of(int head_dim, int value_dim) {
  return {tile_keys(head_dim, value_dim), chunk_keys(value_dim)};
}

}  // namespace chorale::cuda
