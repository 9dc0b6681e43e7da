#!/usr/bin/env bash
# forward_race.sh: builds build/cuda/forward_race.
# forward_race.sh NAME [KEY=VALUE ...] [-D...]: builds build/cuda/NAME.cubin, the forward kernel of KERNELS (a folder; default
# kernels) with these constants and the mask of PROGRAM (a folder with a program.cuh; default bench/cuda). What ptxas makes of
# the kernel depends on the mask's text: race what `chorale kernels --source` prints.
set -euo pipefail
cd "$(dirname "$0")/../.."
. bench/cuda/constants.sh
mkdir -p build/cuda
target=(-gencode=arch=compute_90a,code=sm_90a)
if [ $# -eq 0 ]; then
  exec nvcc -std=c++20 -O2 "${target[@]}" -cudart static -Ikernels -Ibench/cuda -o build/cuda/forward_race bench/cuda/forward_race.cu -ldl
fi
name=$1; shift
declare -A value=([HEAD_DIM]=128 [VALUE_DIM]=128 [GROUP]=1 [BFLOAT16]=true [FP8_CACHE]=false [PAGED]=false [PAGE_SIZE]=0
                  [MASKED]=true [SCORED]=false [SINKS]=false [TILE]=128 [CHUNK]=2048 [POSITIONS]=128 [CLUSTER]=1)
read_constants "$@"
kernels=${KERNELS:-kernels}
nvcc -std=c++17 -fmad=false -lineinfo "${target[@]}" -Xptxas -v "-I${PROGRAM:-bench/cuda}" "-I$kernels" "${definitions[@]}" \
  ${others[@]+"${others[@]}"} -cubin -o "build/cuda/$name.cubin" "$kernels/forward.cu" 2>&1 | grep -E "error|spill stores|warning" || true
test -s "build/cuda/$name.cubin"
