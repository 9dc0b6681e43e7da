// kernels/ptx.cuh, for fibers on a CPU (block.h): the same names.
#pragma once

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
#include "tensor_map.h"

namespace chorale::kernels {

using u32 = unsigned int;
using u64 = unsigned long long;
using u16 = unsigned short;

using emulation::shared_address;
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
  return std::isnan(x) ? 0x7fff : from_float<Number<bfloat16>>(x).bits;
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
inline float2 unpack_e4m3(u16 codes) {
  const auto value = [](int code) { return to_float(float8_e4m3{static_cast<std::uint8_t>(code)}); };
  return {value(codes & 0xff), value(codes >> 8)};
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

  static Barrier& at(u32 address) { return *reinterpret_cast<Barrier*>(emulation::shared_place(address)); }
  static Barrier& own(u32 address) { return *reinterpret_cast<Barrier*>(emulation::own_place(address)); }
  static Barrier& own(const u64* barrier) { return own(shared_address(barrier)); }
  void arrive(u32 arrivals) {
    missing = static_cast<int16_t>(missing - static_cast<int>(arrivals));
    end_phase_if_complete();
  }
  void take_bytes(int count) {
    bytes -= count;
    end_phase_if_complete();
  }

 private:
  void end_phase_if_complete() {
    emulation::require(missing >= 0, "more arrivals than a phase has");
    if (missing > 0 || bytes != 0) return;
    missing = of_a_phase;
    phase ^= 1;
  }
};
static_assert(sizeof(Barrier) == sizeof(u64));

inline void mbarrier_init(u64* barrier, u32 arrivals) {
  const auto count = static_cast<int16_t>(arrivals);
  Barrier::own(barrier) = {count, count, 0, 0};
}
inline void mbarrier_arrive(u32 address, u32 arrivals = 1) {
  Barrier::own(address).arrive(arrivals);
  emulation::pause();
}
inline void mbarrier_arrive(u64* barrier, u32 arrivals = 1) {
  mbarrier_arrive(shared_address(barrier), arrivals);
}
inline void mbarrier_arrive_if(bool arrives, u32 address) {
  if (arrives) mbarrier_arrive(address);
}
inline void mbarrier_arrive_expect_bytes(u64* barrier, u32 bytes) {
  Barrier::own(barrier).bytes += static_cast<int>(bytes);
  mbarrier_arrive(barrier);
}
inline void mbarrier_wait(u32 address, u32 parity) {
  const Barrier& barrier = Barrier::own(address);
  emulation::wait_until([&] { return barrier.phase != parity; });
}
inline void mbarrier_wait(u64* barrier, u32 parity) { mbarrier_wait(shared_address(barrier), parity); }
inline void mbarrier_init_fence() {}
inline void named_barrier_arrive(int id, int threads) {
  emulation::named_barrier(id).arrive(threads);
  emulation::pause();
}
inline void named_barrier_sync(int id, int threads) { emulation::named_barrier(id).sync(threads); }
inline void fence_proxy_async() {}
inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}
inline u32 count_arrival(u32* counter, u32 last) {
  const u32 before = std::exchange(*counter, *counter >= last ? 0 : *counter + 1);
  emulation::pause();
  return before;
}
template <int registers>
void take_registers() {}
template <int registers>
void give_registers() {}

// --- clusters ----------------------------------------------------------------------------------------------

inline int cluster_rank() { return emulation::thread().block % emulation::grid().cluster; }
inline u32 remote_address(u32 shared, int rank) {
  emulation::require(rank >= 0 && rank < emulation::grid().cluster, "a rank that the cluster has not");
  const int first = emulation::thread().block - cluster_rank();
  return static_cast<u32>(first + rank) * emulation::block_stride + shared % emulation::block_stride;
}
template <class T>
void remote_store(u32 address, T x, u32 barrier) {
  emulation::do_later([=] {
    std::memcpy(emulation::shared_place(address), &x, sizeof x);
    Barrier::at(barrier).take_bytes(sizeof x);
  });
}
inline void cluster_sync() { emulation::cluster_sync(); }

// --- the copy engine ---------------------------------------------------------------------------------------

inline void copy_box(const emulation::Map& map, u32 to, u32 barrier, const emulation::Map::Place& from) {
  constexpr auto bytes = emulation::Map::piece_bytes;
  map.for_each_piece(from, to, [](unsigned char* shared, const unsigned char*) {
    std::memset(shared, 0xff, bytes);  // NaN until it is there
  });
  emulation::do_later([=] {
    map.for_each_piece(from, to, [](unsigned char* shared, const unsigned char* memory) {
      if (memory == nullptr)
        std::memset(shared, 0, bytes);
      else
        std::memcpy(shared, memory, bytes);
    });
    Barrier::at(barrier).take_bytes(map.box_bytes());
  });
}
inline void copy_box(void* to, const void* map, u64* barrier, int c0, int c1, int c2, int c3 = 0,
                     int c4 = 0) {
  copy_box(emulation::Map::at(map), shared_address(to), shared_address(barrier), {c0, c1, c2, c3, c4});
}
inline void copy_streamed_box(void* to, const void* map, u64* barrier, int c0, int c1, int c2, int c3 = 0,
                              int c4 = 0) {
  copy_box(to, map, barrier, c0, c1, c2, c3, c4);
}
inline void store_box(const void* map, int c0, int c1, int c2, u32 from) {
  emulation::thread().unread.push_back([m = emulation::Map::at(map), c0, c1, c2, from]() -> emulation::Work {
    std::vector<std::pair<unsigned char*, uint4>> pieces;
    m.for_each_piece({c0, c1, c2, 0, 0}, from, [&](const unsigned char* shared, unsigned char* memory) {
      uint4 piece;
      std::memcpy(&piece, shared, sizeof piece);
      if (memory != nullptr) pieces.push_back({memory, piece});
    });
    return [pieces = std::move(pieces)] {
      for (const auto& [memory, piece] : pieces) std::memcpy(memory, &piece, sizeof piece);
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

// --- warp matrix instructions ------------------------------------------------------------------------------

// d plus a step's 16 products. They are added in float64, so that their order within the step shows no more
// than it does on a card. NaN has one form there, and here.
template <class A, class B>
float add_products(float d, A a, B b) {
  double sum = d;
  for (int k = 0; k < 16; ++k) sum += double(a(k)) * double(b(k));
  return std::isnan(sum) ? __uint_as_float(0x7fffffff) : static_cast<float>(sum);
}

struct MatrixRow {  // of eight 16-bit values: what one lane points at, and a part of what it gets or gives
  u32 address;
  u32* parts;

  static const MatrixRow& of(const emulation::Lanes& lanes, int lane) {
    return *reinterpret_cast<const MatrixRow*>(lanes.value[lane]);
  }
  void meet(emulation::WarpWork work) const { emulation::together(reinterpret_cast<u64>(this), work); }
};
inline void load_matrices(u32 (&r)[4], u32 address) {
  MatrixRow{address, r}.meet([](const emulation::Lanes& lanes) {
    for (int i = 0; i < 4; ++i)
      for (int lane = 0; lane < 32; ++lane)
        std::memcpy(&MatrixRow::of(lanes, lane).parts[i],
                    emulation::own_place(MatrixRow::of(lanes, 8 * i + lane / 4).address + lane % 4 * 4), 4);
  });
}
inline void load_matrices_transposed(u32 (&r)[4], u32 address) {
  MatrixRow{address, r}.meet([](const emulation::Lanes& lanes) {
    for (int i = 0; i < 4; ++i)
      for (int lane = 0; lane < 32; ++lane) {
        u16 two[2];
        for (int j = 0; j < 2; ++j)
          std::memcpy(
              &two[j],
              emulation::own_place(MatrixRow::of(lanes, 8 * i + lane % 4 * 2 + j).address + lane / 4 * 2), 2);
        MatrixRow::of(lanes, lane).parts[i] = u32(two[1]) << 16 | two[0];
      }
  });
}
inline void store_matrices(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
  u32 r[4] = {r0, r1, r2, r3};
  MatrixRow{address, r}.meet([](const emulation::Lanes& lanes) {
    for (int i = 0; i < 4; ++i)
      for (int lane = 0; lane < 32; ++lane)
        std::memcpy(emulation::own_place(MatrixRow::of(lanes, 8 * i + lane / 4).address + lane % 4 * 4),
                    &MatrixRow::of(lanes, lane).parts[i], 4);
  });
}

// Of a thread g of 8, c of 4 (lane = 4 g + c): d has rows g and g + 8, columns 2c and 2c + 1; a those rows
// and products 2c, 2c + 1, 2c + 8 and 2c + 9; b these products of column g.
template <bool bfloat16>
void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  struct Fragments {
    float* d;
    const u32* a;
    u32 b[2];
  } own = {d, a, {b0, b1}};
  emulation::together(reinterpret_cast<u64>(&own), [](const emulation::Lanes& lanes) {
    float rows[16][16], columns[8][16];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& from = *reinterpret_cast<const Fragments*>(lanes.value[lane]);
      const int g = lane / 4, c = lane % 4;
      for (int high = 0; high < 2; ++high)
        for (int e = 0; e < 2; ++e) {
          const int k = 8 * high + 2 * c + e;
          for (int half = 0; half < 2; ++half)
            rows[g + 8 * half][k] = unpack<bfloat16>(from.a[2 * high + half] >> 16 * e);
          columns[g][k] = unpack<bfloat16>(from.b[high] >> 16 * e);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const auto& to = *reinterpret_cast<const Fragments*>(lanes.value[lane]);
      for (int i = 0; i < 4; ++i) {
        const float *row = rows[lane / 4 + i / 2 * 8], *column = columns[lane % 4 * 2 + i % 2];
        to.d[i] = add_products(
            to.d[i], [&](int k) { return row[k]; }, [&](int k) { return column[k]; });
      }
    }
  });
}

// --- memory
// ---------------------------------------------------------------------------------------------------

inline uint4 load_16_bytes(u32 shared) {
  uint4 x;
  std::memcpy(&x, emulation::own_place(shared), sizeof x);
  return x;
}
inline u16 load_2_bytes(u32 shared) {
  u16 x;
  std::memcpy(&x, emulation::own_place(shared), sizeof x);
  return x;
}
inline void store_16_bytes(u32 shared, uint4 x) { std::memcpy(emulation::own_place(shared), &x, sizeof x); }
inline void store_4_bytes_if(bool stores, float* to, float x) {
  if (stores) *to = x;
}

// --- asynchronous copies of 16 bytes ----------------------------------------------------------------------

inline void copy_16_bytes(u32 to, const void* from) {
  unsigned char* place = emulation::own_place(to);
  std::memset(place, 0xff, 16);  // NaN until it is there
  emulation::thread().copies.push_back([from, place] { std::memcpy(place, from, 16); });
}
inline void copies_arrive(u64* barrier) {
  emulation::do_later(
      [copies = std::exchange(emulation::thread().copies, {}), address = shared_address(barrier)] {
        for (const emulation::Work& copy : copies) copy();
        Barrier::at(address).arrive(1);
      });
}

}  // namespace chorale::kernels
