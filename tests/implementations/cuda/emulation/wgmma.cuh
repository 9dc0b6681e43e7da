// kernels/wgmma.cuh, for fibers on a CPU (block.h). A product is made when it is waited for: of the registers
// and the shared memory of that time.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "ptx.cuh"

namespace chorale::kernels {

struct Products {  // of a thread: groups that were committed, and those that were not yet
  std::deque<std::vector<std::function<void()>>> groups;
  std::vector<std::function<void()>> asked;
};
Products& products();

inline void wgmma_fence() {}
inline void wgmma_commit() { products().groups.push_back(std::exchange(products().asked, {})); }
template <int groups>
void wgmma_wait() {
  emulation::exchange(0);  // all lanes have asked, and have in their registers what they asked for
  while (products().groups.size() > groups) {
    for (const auto& product : products().groups.front()) product();
    products().groups.pop_front();
  }
  emulation::exchange(0);
}
inline void wgmma_wait_behind(bool) { wgmma_wait<0>(); }
template <class T, int size>
void pin(T (&)[size]) {}

inline u32 describe_rows(u32 address) { return 1u << 16 | address >> 4; }
inline u32 describe_columns(u32 address, u32 block_bytes) { return block_bytes >> 4 << 16 | address >> 4; }

template <bool bfloat16>
float operand(u32 address) {
  u16 x;
  std::memcpy(&x, ::memory + swizzled(address), 2);
  return unpack<bfloat16>(x);
}

template <int N, bool bfloat16>
struct Wgmma {
  // a(row, k), b(k, column)
  template <class A, class B>
  static void multiply(float (&d)[N / 2], bool accumulate, A a, B b) {
    for (int i = 0; i < N / 2; ++i) {
      const int row = i / 2 % 2, column = i / 4 * 8 + lane_now() % 4 * 2 + i % 2;
      float sum = accumulate ? d[i] : 0;
      for (int k = 0; k < 16; ++k) sum += a(row, k) * b(k, column);
      d[i] = sum;
    }
  }
  static void rows_by_rows(float (&d)[N / 2], u32 a, u32 b, int accumulate) {
    const u32 first = (a & 0xffff) << 4, keys = (b & 0xffff) << 4;
    const int row = emulation::thread().number % 128 / 32 * 16 + lane_now() / 4;
    products().asked.push_back([=, &d] {
      multiply(
          d, accumulate != 0,
          [&](int r, int k) {
            return operand<bfloat16>(first + static_cast<u32>((row + 8 * r) * 128 + 2 * k));
          },
          [&](int k, int column) {
            return operand<bfloat16>(keys + static_cast<u32>(column * 128 + 2 * k));
          });
    });
  }
  static void registers_by_columns(float (&d)[N / 2], const u32* a, u32 b, int accumulate) {
    const emulation::Lanes fragments = emulation::exchange(reinterpret_cast<std::uint64_t>(a));
    const u32 first = (b & 0xffff) << 4, block_bytes = b >> 16 << 4;
    products().asked.push_back([=, &d] {
      multiply(
          d, accumulate != 0,
          [&](int r, int k) {
            const int lane = lane_now() / 4 * 4 + k % 8 / 2;
            const u32 pair = reinterpret_cast<const u32*>(fragments.value[lane])[k / 8 * 2 + r];
            return unpack<bfloat16>(k % 2 == 0 ? pair : pair >> 16);
          },
          [&](int k, int column) {
            return operand<bfloat16>(first + static_cast<u32>(column / 64) * block_bytes +
                                     static_cast<u32>(k * 128 + column % 64 * 2));
          });
    });
  }
};

}  // namespace chorale::kernels
