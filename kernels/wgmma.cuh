// Warpgroup matrix instructions: 64 rows, k16 steps, floats accumulated in registers.
//
// Fragment of an accumulator of N columns: thread t of the warpgroup holds, for each group i of 8 columns,
// d[4 i + 0, 1]: row 16 (t / 32) + (t % 32) / 4, columns 8 i + 2 (t % 4) and the next; d[4 i + 2, 3]: 8 rows
// below. (PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16".)
#pragma once

#include "ptx.cuh"

namespace chorale::kernels {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int groups>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups) : "memory");
}

// wgmma_wait<0>(), after all that stands before it. ptxas moves a wait towards the beginning of its block of
// code, so this begins another one; `either` is anything that is known only when it runs.
__device__ __forceinline__ void wgmma_wait_behind(bool either) {
  if (either)
    asm volatile("wgmma.wait_group.sync.aligned 0; // one" ::: "memory");
  else
    asm volatile("wgmma.wait_group.sync.aligned 0; // other" ::: "memory");
}

// Pins registers to this place in the program: what computes them stays before, what reads them after.
// Without it the compiler may move arithmetic across wgmma_wait(), which it knows nothing of.
template <int size>
__device__ __forceinline__ void pin(float (&registers)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int size>
__device__ __forceinline__ void pin(u32 (&registers)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Operands in shared memory are blocks of 64 columns (128 bytes) a row, rows one after another, swizzled by
// 128 bytes as the copy engine writes them; a block starts at a multiple of 1024 bytes. Descriptors of them
// differ in their lower word only, which is all that is computed.
constexpr u64 swizzle_128 = 1, descriptor_high = swizzle_128 << 30 | 1024 >> 4;

// Rows are M or N, columns the inner dimension. Step s of 16 columns within a block: add 2 s.
__device__ __forceinline__ u32 describe_rows(u32 address) { return 1u << 16 | address >> 4; }
// Rows are the inner dimension, columns N; `block_bytes` from one block of 64 columns to the next. Step s of
// 16 rows: add 128 s.
__device__ __forceinline__ u32 describe_columns(u32 address, u32 block_bytes) {
  return block_bytes >> 4 << 16 | address >> 4;
}
__device__ __forceinline__ u64 descriptor(u32 low) { return descriptor_high << 32 | low; }

// One instruction for N columns: LIST names the N / 2 registers of d, the last argument gives them as
// operands; A to F are the numbers of the operands that follow.
#define CHORALE_WGMMA(N, LIST, A, B, C, D, E, F, ...)                                                      \
  template <bool bfloat16>                                                                                 \
  struct Wgmma<N, bfloat16> {                                                                              \
    static __device__ __forceinline__ void rows_by_rows(float (&d)[N / 2], u32 a, u32 b, int accumulate) { \
      if constexpr (bfloat16)                                                                              \
        CHORALE_WGMMA_SHARED(N, LIST, "bf16", A, B, C, __VA_ARGS__);                                       \
      else                                                                                                 \
        CHORALE_WGMMA_SHARED(N, LIST, "f16", A, B, C, __VA_ARGS__);                                        \
    }                                                                                                      \
    static __device__ __forceinline__ void registers_by_columns(float (&d)[N / 2], const u32* a, u32 b,    \
                                                                int accumulate) {                          \
      if constexpr (bfloat16)                                                                              \
        CHORALE_WGMMA_REGISTERS(N, LIST, "bf16", A, B, C, D, E, F, __VA_ARGS__);                           \
      else                                                                                                 \
        CHORALE_WGMMA_REGISTERS(N, LIST, "f16", A, B, C, D, E, F, __VA_ARGS__);                            \
    }                                                                                                      \
  }
#define CHORALE_WGMMA_SHARED(N, LIST, T, A, B, C, ...)                                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C                                                \
               ", 0;\n"                                                                               \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." T "." T " {" LIST "}, %" #A ", %" #B \
               ", p, 1, 1, 0, 0;\n}"                                                                  \
               : __VA_ARGS__                                                                          \
               : "l"(descriptor(a)), "l"(descriptor(b)), "r"(accumulate))
#define CHORALE_WGMMA_REGISTERS(N, LIST, T, A, B, C, D, E, F, ...)                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #F                                                 \
               ", 0;\n"                                                                                \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." T "." T " {" LIST "}, {%" #A ", %" #B \
               ", %" #C ", %" #D "}, %" #E ", p, 1, 1, 1;\n}"                                          \
               : __VA_ARGS__                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor(b)), "r"(accumulate))

#define CHORALE_D4(i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define CHORALE_D16(i) CHORALE_D4(i), CHORALE_D4((i) + 4), CHORALE_D4((i) + 8), CHORALE_D4((i) + 12)
#define CHORALE_D32 CHORALE_D16(0), CHORALE_D16(16)
#define CHORALE_D48 CHORALE_D32, CHORALE_D16(32)
#define CHORALE_D64 CHORALE_D48, CHORALE_D16(48)
#define CHORALE_D96 CHORALE_D64, CHORALE_D16(64), CHORALE_D16(80)
#define CHORALE_D128 CHORALE_D96, CHORALE_D16(96), CHORALE_D16(112)
#define CHORALE_L32                                       \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15" \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CHORALE_L48 CHORALE_L32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define CHORALE_L64 CHORALE_L48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CHORALE_L96                                                  \
  CHORALE_L64                                                        \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
  ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define CHORALE_L128                                                             \
  CHORALE_L96                                                                    \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
  ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d (+)= a b; where `accumulate` is 0 d is overwritten. rows_by_rows: a and b in shared memory, the inner
// dimension along columns. registers_by_columns: a is a fragment in registers, b's inner dimension is its
// rows.
template <int N, bool bfloat16>
struct Wgmma;
CHORALE_WGMMA(64, CHORALE_L32, 32, 33, 34, 35, 36, 37, CHORALE_D32);
CHORALE_WGMMA(96, CHORALE_L48, 48, 49, 50, 51, 52, 53, CHORALE_D48);
CHORALE_WGMMA(128, CHORALE_L64, 64, 65, 66, 67, 68, 69, CHORALE_D64);
CHORALE_WGMMA(192, CHORALE_L96, 96, 97, 98, 99, 100, 101, CHORALE_D96);
CHORALE_WGMMA(256, CHORALE_L128, 128, 129, 130, 131, 132, 133, CHORALE_D128);

#undef CHORALE_WGMMA
#undef CHORALE_WGMMA_SHARED
#undef CHORALE_WGMMA_REGISTERS

}  // namespace chorale::kernels
