#!/usr/bin/env bash
# lint.sh [BASE]: clang-tidy over the C++ sources that differ from BASE, by default the branch's upstream, or the last
# commit where there is none. All of them would take longer on 2 cores than the build does.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${1:-$(git rev-parse --verify --quiet '@{upstream}' || git rev-parse --verify HEAD)}
base=$(git merge-base "$base" HEAD)
mapfile -t sources < <(git diff --name-only --diff-filter=d "$base" -- '*.cpp')
if [ ${#sources[@]} -eq 0 ]; then
  echo "lint: no C++ source differs from $(git rev-parse --short "$base")"
  exit 0
fi
echo "lint: ${#sources[@]} sources that differ from $(git rev-parse --short "$base")"
# Clang reads neither GCC's precompiled headers nor the names of all its warnings.
mkdir -p build/lint
sed -E 's/ -Winvalid-pch| -include [^ ]*cmake_pch\.hxx| -Wno-restrict| -Wno-stringop-[a-z]+//g' \
  build/release/compile_commands.json >build/lint/compile_commands.json
printf '%s\0' "${sources[@]}" | xargs -0 --max-args 1 --max-procs "$(nproc)" clang-tidy --quiet -p build/lint
