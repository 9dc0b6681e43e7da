// kernels/wgmma.cuh, for fibers on a CPU (block.h). A product is made when it is waited for: of the registers
// and the shared memory of that time.
#pragma once

#include "ptx.cuh"

namespace chorale::kernels {

inline void wgmma_fence() {}
inline void wgmma_commit() {
  emulation::Thread& asked = emulation::thread();
  asked.product_groups.push_back(std::exchange(asked.products, {}));
}
template <int groups>
void wgmma_wait() {
  emulation::together(0);  // all lanes have asked, and have in their registers what they asked for
  auto& committed = emulation::thread().product_groups;
  while (committed.size() > groups) {
    for (const emulation::Work& product : committed.front()) product();
    committed.pop_front();
  }
  emulation::together(0);
}
inline void wgmma_wait_behind(bool) { wgmma_wait<0>(); }
template <class T, int size>
void pin(T (&)[size]) {}

// Addresses within the block's shared memory: others do not fit.
inline u32 describe_rows(u32 address) { return 1u << 16 | address % emulation::block_stride >> 4; }
inline u32 describe_columns(u32 address, u32 block_bytes) {
  return block_bytes >> 4 << 16 | address % emulation::block_stride >> 4;
}

template <bool bfloat16>
float operand(const unsigned char* memory, u32 address) {
  u16 x;
  std::memcpy(&x, memory + emulation::swizzled(address), 2);
  return unpack<bfloat16>(x);
}

template <int N, bool bfloat16>
struct Wgmma {
  // a(row, k) of the thread's two rows, b(k, column)
  template <class A, class B>
  static void multiply(float (&d)[N / 2], bool accumulate, A a, B b) {
    float rows[2][16], column[16];
    for (int row = 0; row < 2; ++row)
      for (int k = 0; k < 16; ++k) rows[row][k] = a(row, k);
    const int first = lane_now() % 4 * 2;
    for (int i = 0; i < N / 4; ++i) {
      for (int k = 0; k < 16; ++k) column[k] = b(k, i / 2 * 8 + first + i % 2);
      for (int row = 0; row < 2; ++row) {
        float& sum = d[i / 2 * 4 + row * 2 + i % 2];
        sum = add_products(
            accumulate ? sum : 0, [&](int k) { return rows[row][k]; }, [&](int k) { return column[k]; });
      }
    }
  }
  static void rows_by_rows(float (&d)[N / 2], u32 a, u32 b, int accumulate) {
    const u32 first = (a & 0xffff) << 4, keys = (b & 0xffff) << 4;
    const int row = emulation::thread().number % 128 / 32 * 16 + lane_now() / 4;
    emulation::thread().products.push_back([=, &d, memory = emulation::shared_memory()] {
      multiply(
          d, accumulate != 0,
          [&](int r, int k) {
            return operand<bfloat16>(memory, first + static_cast<u32>((row + 8 * r) * 128 + 2 * k));
          },
          [&](int k, int column) {
            return operand<bfloat16>(memory, keys + static_cast<u32>(column * 128 + 2 * k));
          });
    });
  }
  static void registers_by_columns(float (&d)[N / 2], const u32* a, u32 b, int accumulate) {
    // Of the lanes that have the thread's rows.
    std::array<const u32*, 4> fragments;
    const emulation::Lanes& all = emulation::together(reinterpret_cast<u64>(a));
    for (int i = 0; i < 4; ++i)
      fragments[i] = reinterpret_cast<const u32*>(all.value[lane_now() / 4 * 4 + i]);
    const u32 first = (b & 0xffff) << 4, block_bytes = b >> 16 << 4;
    emulation::thread().products.push_back([=, &d, memory = emulation::shared_memory()] {
      multiply(
          d, accumulate != 0,
          [&](int r, int k) {
            const u32 pair = fragments[k % 8 / 2][k / 8 * 2 + r];
            return unpack<bfloat16>(k % 2 == 0 ? pair : pair >> 16);
          },
          [&](int k, int column) {
            return operand<bfloat16>(memory, first + static_cast<u32>(column / 64) * block_bytes +
                                                 static_cast<u32>(k * 128 + column % 64 * 2));
          });
    });
  }
};

}  // namespace chorale::kernels
