// One kernel: EMULATED_FILE, whose entry is EMULATED_ENTRY and whose threads are EMULATED_THREADS, as
// emulation::EMULATED_NAME. Kernels have names in common, so each has its own in the place of the namespace
// `kernels`.
#ifndef __clang_analyzer__  // which would read the kernel's sources by a CPU's rules
#include "kernel.h"

#include "base/float.h"
#include "cuda_functions.h"
#include "tensor_map.h"

#define kernels EMULATED_NAME
#define TEXT(x) #x
#define TEXT_OF(x) TEXT(x)
#include EMULATED_FILE

namespace emulation {

using chorale::kernels::Config;

extern const Kernel EMULATED_NAME;
const Kernel EMULATED_NAME = {
    TEXT_OF(EMULATED_NAME),
    Config::head_dim,
    Config::value_dim,
    Config::group,
    Config::bfloat16,
    Config::fp8_cache,
    Config::page_size,
    Config::masked,
    Config::scored,
    Config::sinks,
    Config::tile,
    Config::chunk,
    Config::positions,
    CHORALE_CLUSTER,
    EMULATED_THREADS,
    [](const void* params) { EMULATED_ENTRY(*static_cast<const chorale::kernels::ForwardParams*>(params)); }};

}  // namespace emulation
#endif
