// FlashAttention-3's forward as one C function, built from its own sources (bfloat16, head_dim 128, neither
// packed nor paged), where no package of it fits the PyTorch that is there. bench/cuda/flash_3.sh builds it.
#include "flash_fwd_launch_template.h"

template void run_mha_fwd_<90, cutlass::bfloat16_t, 128, 128, false, false, false, false>(Flash_fwd_params&,
                                                                                          cudaStream_t);
void prepare_varlen_num_blocks(Flash_fwd_params&, cudaStream_t, bool, int, int, bool) {}  // not reached

// q, out [batch, length, heads, 128], k, v [batch, length, kv_heads, 128], lse [batch, heads, length];
// `semaphore`: one int of device memory. As flash_api.cpp's mha_fwd sets the parameters.
extern "C" int flash_3_forward(void* q, void* k, void* v, void* out, float* lse, int* semaphore, int batch,
                               int length, int heads, int kv_heads, int causal, int multiprocessors,
                               cudaStream_t stream) {
  constexpr int dim = 128;
  Flash_fwd_params p{};
  p.q_ptr = q, p.k_ptr = k, p.v_ptr = v, p.o_ptr = out, p.softmax_lse_ptr = lse;
  p.q_head_stride = p.k_head_stride = p.v_head_stride = p.o_head_stride = dim;
  p.q_row_stride = p.o_row_stride = dim * heads, p.k_row_stride = p.v_row_stride = dim * kv_heads;
  p.q_batch_stride = p.o_batch_stride = length * p.q_row_stride;
  p.k_batch_stride = p.v_batch_stride = length * p.k_row_stride;
  p.v_dim_stride = 1;
  p.b = p.b_k = batch, p.h = heads, p.h_k = kv_heads;
  p.seqlen_q = p.seqlen_k = length, p.total_q = p.total_k = batch * length;
  p.seqlen_q_rounded = p.seqlen_k_rounded = (length + 127) / 128 * 128;
  p.d = p.d_rounded = p.dv = p.dv_rounded = dim;
  p.scale_softmax = 1 / sqrtf(dim);
  p.p_dropout = p.rp_dropout = 1, p.p_dropout_in_uint8_t = 255;
  p.is_bf16 = true, p.is_causal = causal;
  p.window_size_left = length - 1, p.window_size_right = causal ? 0 : length - 1;
  p.page_size = p.num_splits = 1;
  p.arch = 90, p.num_sm = multiprocessors;
  p.tile_count_semaphore = semaphore;
  if (const cudaError_t failed = cudaMemsetAsync(semaphore, 0, sizeof(int), stream)) return failed;
  run_mha_fwd_<90, cutlass::bfloat16_t, 128, 128, false, false, false, false>(p, stream);
  return cudaGetLastError();
}
