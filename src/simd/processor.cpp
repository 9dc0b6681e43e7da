// What the processor has.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "simd/dot_tiles.h"

namespace chorale::simd {
namespace {

// Linux hands out the large tile state on request only.
bool request_amx() {
  constexpr long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
  return ::syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
}

DotLevel detect() {
  __builtin_cpu_init();
  // What instruction_sets.h lets the compiler use.
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return DotLevel::none;
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;  // of leaf 7
  const bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) != 0 && (d & amx_tile) != 0;
  return amx && request_amx() ? DotLevel::amx : DotLevel::avx512_bf16;
}

}  // namespace

DotLevel processor_dot_level() {
  static const DotLevel level = detect();
  return level;
}

}  // namespace chorale::simd
