// Attention forward for training and prefill, over packed or paged keys.
//
// A block of three warpgroups works through row blocks until none is left. One warpgroup brings: its first
// warp finds the tiles that a row block sees and has the copy engine fetch them, the others make values safe
// to multiply (scrub). Two warpgroups consume, 64 rows each, and take turns at the tensor cores, so that
// one's softmax runs beside the other's products:
//
//     for each tile:   S' = Q K'    (asynchronous)
//                      O += P V     (asynchronous, of the tile before)
//                      wait for S';  P' = softmax(S')
//                      wait for O;   O *= rescale, or at a chunk's end: total = merge(total, O)
//
// The order of arithmetic is docs/numerics.md's; its operations are softmax.cuh's.
#include "config.cuh"
#include "forward_bring.cuh"
#include "forward_consume.cuh"
#include "forward_memory.cuh"
#include "params.h"
#include "ptx.cuh"
#include "schedule.cuh"
#include "softmax.cuh"
#include "visibility.cuh"
#include "wgmma.cuh"

extern "C" __device__ const int chorale_forward_smem = sizeof(chorale::kernels::ForwardMemory);
extern "C" __device__ const int chorale_forward_threads = chorale::kernels::forward_threads;
extern "C" __device__ const int chorale_forward_overlaps = 1;

extern "C" __global__ void __launch_bounds__(chorale::kernels::forward_threads, 1)
    chorale_forward(const __grid_constant__ chorale::kernels::ForwardParams params) {
  using namespace chorale::kernels;
  extern __shared__ __align__(1024) unsigned char memory[];
  ForwardMemory& shared = *reinterpret_cast<ForwardMemory*>(memory);
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();

  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    give_registers<bring_registers>();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    switch (warp) {
      case 0:
        take_items(params, shared);
        break;
      case 1:
        bring_keys(params, shared);
        break;
      case 2:
        bring_values(params, shared);
        break;
      default:
        scrub(shared);
    }
  } else {
    take_registers<consume_registers>();
    consume(params, shared, warpgroup - 1);
  }
}
