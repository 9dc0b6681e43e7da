#!/usr/bin/env bash
# decode_bench.sh NAME [-D...]: builds build/cuda/decode_NAME, kernels/decode.cu and its bench with these constants.
# Those not given are bfloat16, head_dim 128, a group of 4, pages of 16.
set -euo pipefail
cd "$(dirname "$0")/../.."
. bench/cuda/constants.sh
name=$1; shift
declare -A value=([HEAD_DIM]=128 [VALUE_DIM]=128 [GROUP]=4 [BFLOAT16]=true [FP8_CACHE]=false [PAGED]=true [PAGE_SIZE]=16
                  [MASKED]=false [SCORED]=false [SINKS]=false [TILE]=128 [CHUNK]=2048 [POSITIONS]=1 [CLUSTER]=1)
read_constants "$@"
mkdir -p build/cuda
nvcc -std=c++20 -O3 -fmad=false -gencode=arch=compute_90a,code=sm_90a -cudart static -Xptxas -v -Ikernels -Ibench/cuda -Isrc -I. \
  "${definitions[@]}" ${others[@]+"${others[@]}"} -o "build/cuda/decode_$name" bench/cuda/decode_bench.cu 2>&1 |
  grep -A1 "error\|chorale_decode\|warning" | grep -v "^--" || true
test -x "build/cuda/decode_$name"
