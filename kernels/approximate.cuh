// The hardware's approximations, for scores (programs) that need no more: relative error below 2^-21.
#ifndef CHORALE_APPROXIMATE  // tests that run on a CPU define it, and their own functions
#define CHORALE_APPROXIMATE

namespace chorale::kernels::program {

__device__ __forceinline__ float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace chorale::kernels::program

#endif
