// Hopper's instructions, one function each. Names follow the PTX ISA, where each is specified.
#pragma once

namespace chorale::kernels {

using u32 = unsigned int;
using u64 = unsigned long long;
using u16 = unsigned short;

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}
// Of an element of an array, by arithmetic of 32 bits: NVRTC would take 64, which costs the forward kernel
// 1%.
template <class T, int size>
__device__ __forceinline__ u32 shared_address(const T (&array)[size], int index) {
  return shared_address(&array[0]) + index * static_cast<u32>(sizeof(T));
}

// --- arithmetic whose rounding is part of the order ---------------------------------------------------

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x rounded to nearest, of a normal x whose reciprocal is one too: what __frcp_rn does, which asks first.
__device__ __forceinline__ float reciprocal_of_normal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return __fmaf_rn(y, -__fmaf_rn(y, x, -1.f), y);
}
// Two floats to two 16-bit values, rounded to nearest even; `low` goes to the lower half.
__device__ __forceinline__ u32 pack_bfloat16(float low, float high) {
  u32 d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ u32 pack_float16(float low, float high) {
  u32 d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
template <bool bfloat16>
__device__ __forceinline__ u32 pack(float low, float high) {
  return bfloat16 ? pack_bfloat16(low, high) : pack_float16(low, high);
}

// sum + 0 x, for two 16-bit values.
template <bool bfloat16>
__device__ __forceinline__ u32 add_zero_times(u32 sum, u32 x) {
  if constexpr (bfloat16)
    asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(0));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %0;" : "+r"(sum) : "r"(x), "r"(0));
  return sum;
}

// Of two 16-bit values those that are not finite become zero; true where there was one.
template <bool bfloat16>
__device__ __forceinline__ bool clear_infinite(u32& pair) {
  constexpr u32 exponent = bfloat16 ? 0x7f80u : 0x7c00u;
  const bool low = (pair & exponent) == exponent, high = (pair >> 16 & exponent) == exponent;
  if (low) pair &= 0xffff0000u;
  if (high) pair &= 0xffffu;
  return low || high;
}

// A value that is the same in all lanes, in a form that lets the compiler know.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

// The lane, in a form that keeps the compiler from working out beforehand, and keeping, what follows from it.
__device__ __forceinline__ int lane_now() {
  u32 lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return static_cast<int>(lane % 32);  // which the compiler does not know
}

// Two e4m3 codes, the lower byte first, as floats: exact.
__device__ __forceinline__ float2 unpack_e4m3(u16 codes) {
  float2 d;
  asm("{\n.reg .b32 pair;\n.reg .b16 low, high;\n"
      "cvt.rn.f16x2.e4m3x2 pair, %2;\n"
      "mov.b32 {low, high}, pair;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n}"
      : "=f"(d.x), "=f"(d.y)
      : "h"(codes));
  return d;
}
// Rounds to nearest even; what is beyond 448 becomes that. `low` goes to the lower byte.
__device__ __forceinline__ u16 pack_e4m3(float low, float high) {
  u16 d;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low));
  return d;
}
__device__ __forceinline__ float bfloat16_to_float(u16 x) { return __uint_as_float(u32(x) << 16); }
__device__ __forceinline__ float float16_to_float(u16 x) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
  return d;
}
// The lower 16 bits.
template <bool bfloat16>
__device__ __forceinline__ float unpack(u32 x) {
  return bfloat16 ? bfloat16_to_float(static_cast<u16>(x)) : float16_to_float(static_cast<u16>(x));
}

// --- barriers -----------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(u64* barrier) { mbarrier_arrive(shared_address(barrier)); }
// One instruction, no branch: it does not end a block of code.
__device__ __forceinline__ void mbarrier_arrive_if(bool arrives, u32 barrier) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(barrier),
      "r"(static_cast<u32>(arrives))
      : "memory");
}
// Arrives as if `arrivals` threads did.
__device__ __forceinline__ void mbarrier_arrive(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect_bytes(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ bool mbarrier_try_wait(u32 barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
template <class F>
__device__ __forceinline__ void wait_until(F&& done) {
#ifdef CHORALE_WATCHDOG  // a wait that never ends becomes an error: for development
  for (int i = 0; i < 1 << 20; ++i)
    if (done()) return;
  __trap();
#else
  while (!done()) {
  }
#endif
}
__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  wait_until([&] { return mbarrier_try_wait(barrier, parity); });
}
__device__ __forceinline__ void mbarrier_wait(u64* barrier, u32 parity) {
  mbarrier_wait(shared_address(barrier), parity);
}
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Shared memory written by ordinary stores becomes visible to the tensor cores and the copy engine.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- clusters of blocks of threads ----------------------------------------------------------------------

// The block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
// Where the same variable lies in another block of the cluster.
__device__ __forceinline__ u32 remote_address(u32 shared, int rank) {
  u32 address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}
// Stores to a block of the cluster. The bytes are counted by a barrier of that block: who has waited for it
// sees them. (Arrivals that release to a cluster and waits that acquire from one would do without the count,
// but cost a fence of the whole card and the first-level cache.)
__device__ __forceinline__ void remote_store(u32 address, u32 x, u32 barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address), "r"(x),
      "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void remote_store(u32 address, float x, u32 barrier) {
  remote_store(address, __float_as_uint(x), barrier);
}
__device__ __forceinline__ void remote_store(u32 address, uint4 x, u32 barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(barrier)
      : "memory");
}
// All threads of the cluster. Barriers that were initialised before, and fenced, are there afterwards.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// --- launches, counters, registers ----------------------------------------------------------------------

// Where a launch may overlap the one before it (programmatic dependent launch): waits until that one is
// complete and its writes are visible. And: the next launch may begin to occupy what this one leaves free.
__device__ __forceinline__ void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void grid_dependency_launch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Adds one to a counter that starts again at 0 after `last`; returns what it was. What this thread and those
// that it has synchronised with wrote before is visible to whoever sees the new count, and the other way
// round.
__device__ __forceinline__ u32 count_arrival(u32* counter, u32 last) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(last)
               : "memory");
  return before;
}

template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// --- the copy engine ----------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// A box of a tensor of 3 or 4 dimensions to shared memory; its bytes are counted by `barrier`.
__device__ __forceinline__ void copy_box(void* to, const void* map, u64* barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const void* map, u64* barrier, int c0, int c1, int c2,
                                         int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// A box of a tensor of 3 dimensions from shared memory; what lies outside of the tensor is left out. Whoever
// asked can wait until all that it asked for has been read from shared memory, or is where it belongs.
__device__ __forceinline__ void store_box(const void* map, int c0, int c1, int c2, u32 from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
               "r"(c0), "r"(c1), "r"(c2), "r"(from)
               : "memory");
}
__device__ __forceinline__ void end_store_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ __forceinline__ void wait_for_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// The same as copy_box of a tensor of 3 to 5 dimensions that is read once: it is the first to leave the L2
// cache.
constexpr u64 evict_first = 0x12f0000000000000;  // as createpolicy makes it
__device__ __forceinline__ void copy_streamed_box(void* to, const void* map, u64* barrier, int c0, int c1,
                                                  int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
      "{%3, %4, %5}], [%2], %6;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "l"(evict_first)
      : "memory");
}
__device__ __forceinline__ void copy_streamed_box(void* to, const void* map, u64* barrier, int c0, int c1,
                                                  int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
      "{%3, "
      "%4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(evict_first)
      : "memory");
}

__device__ __forceinline__ void copy_streamed_box(void* to, const void* map, u64* barrier, int c0, int c1,
                                                  int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
      "{%3, "
      "%4, %5, %6, %7}], [%2], %8;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(evict_first)
      : "memory");
}

// --- warp matrix instructions -------------------------------------------------------------------------

__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_matrices(u32 address, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}
// d += a b for 16 x 8 floats; a is 16 x 16, b is 16 x 8 16-bit values.
template <bool bfloat16>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (bfloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint4 load_16_bytes(u32 shared) {
  uint4 x;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(shared)
               : "memory");
  return x;
}
__device__ __forceinline__ u16 load_2_bytes(u32 shared) {
  u16 x;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(x) : "r"(shared) : "memory");
  return x;
}
__device__ __forceinline__ void store_16_bytes(u32 shared, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}
// Stores without a branch.
__device__ __forceinline__ void store_4_bytes_if(bool stores, float* to, float x) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.u32 p, %2, 0;\n"
      "@p st.global.f32 [%0], %1;\n}" ::"l"(to),
      "f"(x), "r"(static_cast<u32>(stores))
      : "memory");
}
// --- asynchronous copies of 16 bytes ------------------------------------------------------------------

__device__ __forceinline__ void copy_16_bytes(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_16_bytes_or_zero(u32 to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_arrive(u64* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

}  // namespace chorale::kernels
