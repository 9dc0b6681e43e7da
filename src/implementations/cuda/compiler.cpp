#include "implementations/cuda/compiler.h"

#include <fmt/format.h>

#include "implementations/cuda/cubin.h"
#include "implementations/cuda/nvrtc.h"
#include "implementations/cuda/source.h"

namespace chorale::cuda {

Result<CompiledKernel> compile_kernel(const KernelKey& key, const std::string& arch,
                                      const KernelCache& cache) {
  CHORALE_ASSIGN_OR_RETURN(const Nvrtc* nvrtc, Nvrtc::get());
  return cache.get(kernel_identity(key, arch, nvrtc->version()), [&]() -> Result<CompiledKernel> {
    CHORALE_ASSIGN_OR_RETURN(Compilation made, nvrtc->compile(key.describe(), kernel_source(key),
                                                              kernel_headers(key), compiler_options(arch)));
    CompiledKernel kernel;
    kernel.cubin = std::move(made.cubin);
    kernel.log = std::move(made.log);
    kernel.seconds = made.seconds;
    return kernel;
  });
}

Result<LaunchShape> launch_shape(const KernelKey& key, const CompiledKernel& kernel) {
  const auto threads = read_constant(kernel.cubin, key.entry() + "_threads");
  const auto shared_bytes = read_constant(kernel.cubin, key.entry() + "_smem");
  if (!threads || !shared_bytes)
    return Status::internal(fmt::format("kernels/{}.cu does not define {}_{}", name(key.kind), key.entry(),
                                        threads ? "smem" : "threads"));
  const bool overlaps = read_constant(kernel.cubin, key.entry() + "_overlaps").value_or(0) != 0;
  const int cluster = read_constant(kernel.cubin, key.entry() + "_cluster").value_or(1);
  return LaunchShape{*threads, *shared_bytes, overlaps, cluster};
}

}  // namespace chorale::cuda
