// Decode: few query rows over long cached keys. The chunks of all sequences are spread over the chip; each
// gives a state, and states are merged in the order in which a prefill has them (docs/cuda_decode.md).
#include "decode_bring.cuh"
#include "decode_finish.cuh"

namespace chorale::kernels {

__device__ void consume(const ForwardParams& params, DecodeMemory& memory, int rank) {
  const int warp = threadIdx.x / 32;
  Progress progress;
  PassRing passes;
  Running running;
  Outputs out;
  Total total;
  for (;; ++passes.used) {
    mbarrier_wait(&memory.shared.pass_full, passes.parity());
    const Pass pass = memory.shared.pass;
    if (pass.kv_head < 0) return;
    if (pass.starts_item) total.reset();
    if (pass.starts_chunk) {
      running.reset();
      clear(out);
    }
    take_keys(params, memory, pass, progress, running, passes.parity(), warp, rank);
    take_values(params, memory, pass, progress, out, warp, rank);
    if (pass.ends_chunk) finish_chunk(params, memory.shared, pass, running, out, total, warp, rank);
  }
}

}  // namespace chorale::kernels

extern "C" __device__ const int chorale_decode_smem = sizeof(chorale::kernels::DecodeMemory);
extern "C" __device__ const int chorale_decode_threads = chorale::kernels::decode_threads;
extern "C" __device__ const int chorale_decode_cluster = chorale::kernels::cluster;
extern "C" __device__ const int chorale_decode_overlaps = 1;  // with the launch before it

extern "C" __global__ void __launch_bounds__(chorale::kernels::decode_threads, 1)
    chorale_decode(const __grid_constant__ chorale::kernels::ForwardParams params) {
  using namespace chorale::kernels;
  extern __shared__ __align__(1024) unsigned char shared[];
  DecodeMemory& memory = *reinterpret_cast<DecodeMemory*>(shared);
  if (threadIdx.x == 0) {
    grid_dependency_launch();
    memory.initialise();
  }
  cluster > 1 ? cluster_sync() : __syncthreads();
  const int rank = cluster > 1 ? cluster_rank() : 0;
  if (threadIdx.x < consumer_threads) {
    take_registers<consume_registers>();
    consume(params, memory, rank);
  } else {
    give_registers<bring_registers>();
    if (threadIdx.x < consumer_threads + bringers) Bringer(params, memory, rank).run();
  }
  if constexpr (cluster > 1) cluster_sync();  // what others write to must be there
}
