// kernels/ptx.cuh, for fibers on a CPU (block.h): the same names, as far as the forward kernel uses them.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/float.h"
#include "block.h"
#include "cuda_functions.h"

namespace chorale::kernels {

using u32 = unsigned int;
using u64 = unsigned long long;
using u16 = unsigned short;

inline u32 shared_address(const void* pointer) {
  return static_cast<u32>(static_cast<const unsigned char*>(pointer) - ::memory);
}
template <class T, int size>
u32 shared_address(const T (&array)[size], int index) {
  return shared_address(&array[0]) + index * static_cast<u32>(sizeof(T));
}

// --- arithmetic -----------------------------------------------------------------------------------------

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
template <bool bfloat16>
using Number = std::conditional_t<bfloat16, chorale::bfloat16, chorale::float16>;
template <bool bfloat16>
u16 round_to_16(float x) {
  return from_float<Number<bfloat16>>(x).bits;
}
inline float reciprocal_of_normal(float x) { return 1 / x; }
template <bool bfloat16>
u32 pack(float low, float high) {
  return u32(round_to_16<bfloat16>(high)) << 16 | round_to_16<bfloat16>(low);
}
template <bool bfloat16>
float unpack(u32 x) {
  return to_float(Number<bfloat16>{static_cast<u16>(x)});
}
template <bool bfloat16>
u32 add_zero_times(u32 sum, u32 x) {
  const auto one = [](u32 s, u32 y) { return unpack<bfloat16>(s) + 0 * unpack<bfloat16>(y); };
  return pack<bfloat16>(one(sum, x), one(sum >> 16, x >> 16));
}
template <bool bfloat16>
bool clear_infinite(u32& pair) {
  constexpr u32 exponent = bfloat16 ? 0x7f80u : 0x7c00u;
  const bool low = (pair & exponent) == exponent, high = (pair >> 16 & exponent) == exponent;
  if (low) pair &= 0xffff0000u;
  if (high) pair &= 0xffffu;
  return low || high;
}
inline int lane_now() { return emulated_lane(); }
inline int uniform(int x) { return __shfl_sync(~0u, x, 0); }

// --- barriers: phase, bytes under way, arrivals missing, arrivals of a phase -------------------------------

struct Barrier {
  int16_t of_a_phase, missing;
  int bytes : 31;
  unsigned phase : 1;
};
static_assert(sizeof(Barrier) == sizeof(u64));
inline Barrier& barrier_at(u32 address) { return *reinterpret_cast<Barrier*>(::memory + address); }
inline void end_phase_if_complete(Barrier& barrier) {
  emulation::require(barrier.missing >= 0, "more arrivals than a phase has");
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.of_a_phase;
  barrier.phase ^= 1;
}
inline void mbarrier_init(u64* barrier, u32 arrivals) {
  barrier_at(shared_address(barrier)) = {static_cast<int16_t>(arrivals), static_cast<int16_t>(arrivals), 0,
                                         0};
}
inline void mbarrier_arrive(u32 address) {
  Barrier& barrier = barrier_at(address);
  --barrier.missing;
  end_phase_if_complete(barrier);
}
inline void mbarrier_arrive(u64* barrier) { mbarrier_arrive(shared_address(barrier)); }
inline void mbarrier_arrive_if(bool arrives, u32 address) {
  if (arrives) mbarrier_arrive(address);
}
inline void mbarrier_arrive_expect_bytes(u64* barrier, u32 bytes) {
  Barrier& now = barrier_at(shared_address(barrier));
  now.bytes += static_cast<int>(bytes);
  mbarrier_arrive(barrier);
}
inline void mbarrier_wait(u32 address, u32 parity) {
  emulation::wait_until([=] { return barrier_at(address).phase != parity; });
}
inline void mbarrier_wait(u64* barrier, u32 parity) { mbarrier_wait(shared_address(barrier), parity); }
inline void mbarrier_init_fence() {}
inline void named_barrier_arrive(int id, int threads) { emulation::named_barrier(id).arrive(threads); }
inline void named_barrier_sync(int id, int threads) { emulation::named_barrier(id).sync(threads); }
inline void fence_proxy_async() {}
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}
template <int registers>
void take_registers() {}
template <int registers>
void give_registers() {}

// --- the copy engine ---------------------------------------------------------------------------------------

// What a TensorMap holds here: 16-bit values, sizes and strides from the fastest dimension on.
struct Map {
  u16* data;
  long long size[4], stride[4];
  int box[4];

  int rows() const { return box[1] * box[2] * box[3]; }
  // f(shared, value) of each of a box's values: where it lies in shared memory, and in the tensor, or null.
  template <class F>
  void for_each(std::array<int, 4> first, u32 shared, F&& f) const {
    for (int row = 0; row < rows(); ++row) {
      const long long at[4] = {first[0], first[1] + row % box[1], first[2] + row / box[1] % box[2],
                               first[3] + row / box[1] / box[2]};
      for (int column = 0; column < 64; ++column) {
        bool inside = at[0] + column < size[0];
        long long offset = at[0] + column;
        for (int d = 1; d < 4; ++d) {
          inside = inside && at[d] >= 0 && at[d] < size[d];
          offset += at[d] * stride[d];
        }
        f(::memory + swizzled(shared + static_cast<u32>(row * 128 + 2 * column)),
          inside ? data + offset : nullptr);
      }
    }
  }
};
inline Map map_at(const void* map) {
  Map m;
  std::memcpy(&m, map, sizeof m);
  return m;
}
inline void copy_box(void* to, const void* map, u64* barrier, int c0, int c1, int c2, int c3) {
  const Map m = map_at(map);
  const u32 first = shared_address(to);
  const int rows = m.rows();
  std::memset(::memory + first, 0xff, static_cast<std::size_t>(rows) * 128);  // NaN until it is there
  emulation::do_later([=] {
    m.for_each({c0, c1, c2, c3}, first, [](void* shared, const u16* value) {
      const u16 zero = 0;
      std::memcpy(shared, value == nullptr ? &zero : value, 2);
    });
    Barrier& now = barrier_at(shared_address(barrier));
    now.bytes -= rows * 128;
    end_phase_if_complete(now);
  });
}
inline void copy_box(void* to, const void* map, u64* barrier, int c0, int c1, int c2) {
  copy_box(to, map, barrier, c0, c1, c2, 0);
}
inline void store_box(const void* map, int c0, int c1, int c2, u32 from) {
  emulation::thread().unread.push_back([m = map_at(map), c0, c1, c2, from]() -> std::function<void()> {
    std::vector<std::pair<u16*, u16>> values;
    m.for_each({c0, c1, c2, 0}, from, [&](const void* shared, u16* place) {
      u16 value;
      std::memcpy(&value, shared, 2);
      if (place != nullptr) values.push_back({place, value});
    });
    return [values = std::move(values)] {
      for (const auto& [place, value] : values) *place = value;
    };
  });
}
inline void end_store_group() {}
inline void wait_for_stores_read() {
  emulation::Thread& asked = emulation::thread();
  for (const auto& read : std::exchange(asked.unread, {})) asked.unwritten.push_back(read());
}
inline void wait_for_stores() {
  wait_for_stores_read();
  for (const auto& write : std::exchange(emulation::thread().unwritten, {})) write();
}
inline void prefetch_tensor_map(const void*) {}

// --- memory
// --------------------------------------------------------------------------------------------------

inline void store_matrices(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
  const emulation::Lanes rows = emulation::exchange(address);
  const u32 values[4] = {r0, r1, r2, r3};
  const int lane = lane_now();
  for (int j = 0; j < 4; ++j)
    std::memcpy(::memory + rows.value[8 * j + lane / 4] + lane % 4 * 4, &values[j], 4);
  emulation::exchange(0);
}
inline uint4 load_16_bytes(u32 shared) {
  uint4 x;
  std::memcpy(&x, ::memory + shared, sizeof x);
  return x;
}
inline void store_16_bytes(u32 shared, uint4 x) { std::memcpy(::memory + shared, &x, sizeof x); }
inline void store_4_bytes_if(bool stores, float* to, float x) {
  if (stores) *to = x;
}

}  // namespace chorale::kernels
