// The environment, read in this one place.
#pragma once

#include <optional>
#include <string>

namespace chorale {

struct Settings {
  std::optional<std::string> attn_implementation;       // CHORALE_ATTN_IMPLEMENTATION
  std::optional<std::string> verl_attn_implementation;  // VERL_ATTN_IMPLEMENTATION, honoured for verl's users
  int threads = 0;                                      // CHORALE_NUM_THREADS; 0: all cores
  std::optional<std::string>
      simd;  // CHORALE_SIMD: "avx2", "avx512", "avx512_bf16" or "amx": use at most this
  std::optional<std::string> nvrtc;         // CHORALE_NVRTC: NVRTC's library, or the folder that it is in
  std::optional<std::string> kernel_cache;  // CHORALE_KERNEL_CACHE: a folder, or "off"
  std::optional<std::string> cuda_home;     // CUDA_HOME, else CUDA_PATH
  std::optional<std::string> virtual_env;   // VIRTUAL_ENV: a Python environment, which may hold NVRTC
  std::optional<std::string> user_cache;    // XDG_CACHE_HOME, else HOME/.cache
  bool started_by_mpi_launcher = false;     // PMIX_RANK or PMI_RANK: one process of an MPI job
};

// Reads the environment now; nothing is cached, so a test may change it. Malformed numbers read as unset and
// are reported by the command line at start-up (describe_problems).
Settings read_settings();
// "" or one sentence for each variable whose value cannot be used.
std::string describe_settings_problems();

}  // namespace chorale
