#include "simd/levels.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/settings.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale::simd {
namespace {

std::string name_of(DotLevel dot, const std::string& floats) {
  if (dot == DotLevel::amx) return "amx";
  return dot == DotLevel::avx512_bf16 ? "avx512_bf16" : floats;
}

// What Highway asks of a processor before it runs AVX-512 code. (Highway's own answer leaves out what
// simd.cpp has disabled.)
bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512vl");
}

DotLevel most_allowed() {
  const std::string limit = read_settings().simd.value_or("amx");
  if (limit == "avx2" || limit == "avx512") return DotLevel::none;
  return limit == "amx" ? DotLevel::amx : DotLevel::avx512_bf16;
}

}  // namespace

DotLevel dot_level() {
  static const DotLevel level = std::min(processor_dot_level(), most_allowed());
  return level;
}

std::string processor_level() {
  if (!supported().is_ok()) return "none";
  return name_of(processor_dot_level(), has_avx512() ? "avx512" : "avx2");
}

std::string running_level() { return supported().is_ok() ? name_of(dot_level(), level()) : "none"; }

Status check_forced_level() {
  const auto forced = read_settings().simd;
  if (!forced || *forced == running_level()) return Status::ok();
  return Status::unsupported(
      fmt::format("CHORALE_SIMD is '{}': this processor has {} at most", *forced, processor_level()));
}

}  // namespace chorale::simd
