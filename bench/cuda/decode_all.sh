#!/usr/bin/env bash
# decode_all.sh build: every configuration that is checked, into build/cuda (minutes).
# decode_all.sh run FOLDER: checks them all, then times some. Takes half a minute on a card, from any folder. A name that begins
# with "pair" has clusters of two blocks of threads: its hash is that of the name without.
set -euo pipefail

configurations() {
  cat <<END
p16
p64 PAGE_SIZE=64
p1 PAGE_SIZE=1
p256 PAGE_SIZE=256
packed PAGED=false PAGE_SIZE=0
causal8 MASKED=true POSITIONS=8 PAGE_SIZE=64
causal MASKED=true SCORED=true SINKS=true POSITIONS=4 -DDECODE_WINDOW=1500
wide HEAD_DIM=256 VALUE_DIM=256 TILE=64 CHUNK=4096 PAGE_SIZE=32
d192 HEAD_DIM=192 PAGE_SIZE=8 GROUP=8 SINKS=true
d96 HEAD_DIM=96 VALUE_DIM=96 GROUP=1 PAGE_SIZE=4
d64 HEAD_DIM=64 VALUE_DIM=64 GROUP=5 PAGE_SIZE=128 BFLOAT16=false MASKED=true
fp8 FP8_CACHE=true PAGE_SIZE=64
fp8d64 FP8_CACHE=true PAGE_SIZE=2 HEAD_DIM=64 VALUE_DIM=64 GROUP=7
otherchunk CHUNK=512
rows16 POSITIONS=4 PAGE_SIZE=64
rows32 POSITIONS=8 PAGE_SIZE=64
pair16 CLUSTER=2
pair64 CLUSTER=2 PAGE_SIZE=64
pair1 CLUSTER=2 PAGE_SIZE=1
paircausal CLUSTER=2 MASKED=true SCORED=true SINKS=true POSITIONS=4 -DDECODE_WINDOW=1500
pairwide CLUSTER=2 HEAD_DIM=256 VALUE_DIM=256 TILE=64 CHUNK=4096 PAGE_SIZE=32
paird192 CLUSTER=2 HEAD_DIM=192 PAGE_SIZE=8 GROUP=8 SINKS=true
paird96 CLUSTER=2 HEAD_DIM=96 VALUE_DIM=96 GROUP=1 PAGE_SIZE=4
paird64 CLUSTER=2 HEAD_DIM=64 VALUE_DIM=64 GROUP=5 PAGE_SIZE=128 BFLOAT16=false MASKED=true
pairfp8 CLUSTER=2 FP8_CACHE=true PAGE_SIZE=64
pairrows16 CLUSTER=2 POSITIONS=4 PAGE_SIZE=64
pairrows32 CLUSTER=2 POSITIONS=8 PAGE_SIZE=64
END
}

case "${1-}" in
  build) configurations | xargs -L1 "$(dirname "$0")/decode_bench.sh" ;;
  run)
    cd "$2"
    failed=0
    while read -r name _; do
      echo "== $name"
      timeout 20 "./decode_$name" check || { echo "FAILED: $name"; failed=1; }
    done < <(configurations)
    for name in p16 p64 fp8 rows16 rows32 pair16 pair64 pairfp8 pairrows16 pairrows32; do
      echo "== $name"
      timeout 30 "./decode_$name" time 1x1024 16x1024 256x1024 1x4096 1x8192 16x8192 64x8192 1x32768 16x32768 1x131072
    done
    exit $failed ;;
  *) echo "decode_all.sh: '${1-}': must be build or run" >&2; exit 2 ;;
esac
