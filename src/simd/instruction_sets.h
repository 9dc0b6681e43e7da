// The intrinsics of AVX-512 and AMX, and the attributes of functions that use them: the rest of the program
// is compiled for any x86-64. tests/simd/emulation/ has a file of this name that stands in its place.
#pragma once

#include <immintrin.h>

#define CHORALE_AVX512 __attribute__((target("avx512f")))
#define CHORALE_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define CHORALE_AMX \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
