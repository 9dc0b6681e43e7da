#!/usr/bin/env bash
# check_format.sh [--fix]: every tracked C++ and CUDA file against .clang-format; with --fix, rewrites what differs.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1-}" in
  "") action=(--dry-run -Werror) ;;
  --fix) action=(-i) ;;
  *) echo "check_format: '$1': must be --fix or nothing" >&2; exit 2 ;;
esac
git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 --no-run-if-empty clang-format "${action[@]}"
