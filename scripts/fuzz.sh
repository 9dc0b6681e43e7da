#!/usr/bin/env bash
# fuzz.sh SECONDS [TARGET ...]: runs the fuzz targets (all of them if none is named), each for so long, as many at a time
# as there are cores. Each starts from its kept corpus; what it adds lies in build/fuzz/corpus, what it finds in
# build/fuzz/finds. Fails if there is a find. SEED in the environment: 0 searches elsewhere each time, any other number
# as the last time with that number (from the same corpus, in the same build).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls fuzz/corpus)
mkdir -p build/fuzz/finds build/fuzz/logs

# Inputs stay short: what is searched for needs few bytes, and short ones run often.
run_target() {
  local target=$1 log=build/fuzz/logs/$1.log dictionary=()
  [ ! -f "fuzz/$target.dict" ] || dictionary=(-dict="fuzz/$target.dict")
  mkdir -p "build/fuzz/corpus/$target"
  if "build/fuzz/fuzz/fuzz_$target" -max_total_time="$seconds" -max_len=2048 -timeout=60 -rss_limit_mb=4096 \
    -seed="${SEED:-0}" -artifact_prefix="build/fuzz/finds/$target-" "${dictionary[@]}" -print_final_stats=1 \
    "build/fuzz/corpus/$target" "fuzz/corpus/$target" >"$log" 2>&1; then
    echo "fuzz: $target: $(awk '/number_of_executed_units/ { print $2 }' "$log") inputs, nothing found"
  else
    echo "fuzz: $target: FOUND, the end of $log:"
    tail -n 40 "$log"
    return 1
  fi
}
export -f run_target
export seconds
export OMP_WAIT_POLICY=passive  # the targets share the cores

printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I {} bash -c 'run_target {}'
