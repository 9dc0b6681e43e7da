#!/usr/bin/env bash
# flash_3.sh FLASH_ATTENTION CUTLASS OUT.so: builds FlashAttention-3's forward from its checkout (github.com/Dao-AILab/
# flash-attention) and CUTLASS's at the commit that it names; NVCC says which compiler (13.0). Takes three minutes of a processor and 6 GB.
set -euo pipefail
flags=(-O3 -std=c++17 --use_fast_math --expt-relaxed-constexpr --expt-extended-lambda -DNDEBUG -DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
       -DCUTLASS_ENABLE_GDC_FOR_SM90 -DCUTLASS_DEBUG_TRACE_LEVEL=0)   # its setup.py's
for feature in BACKWARD SPLIT PAGEDKV APPENDKV LOCAL SOFTCAP PACKGQA FP16 FP8 VARLEN SM8x HDIM64 HDIM96 HDIM192 HDIM256; do
  flags+=("-DFLASHATTENTION_DISABLE_$feature")
done
"${NVCC:-nvcc}" "${flags[@]}" -gencode arch=compute_90a,code=sm_90a -Xcompiler -fPIC -shared -cudart static \
  -I "$1/hopper" -I "$2/include" -o "$3" "$(dirname "$0")/flash_3.cu"
