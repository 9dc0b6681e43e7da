#!/usr/bin/env bash
# bench.sh [arguments of bench/attention_cpu.py]: how fast a whole model decodes and trains; then races the CPU's
# attention against PyTorch's, if the extras are there.
set -euo pipefail
cd "$(dirname "$0")/.."
build/release/bench/model_cpu
python=.extras/venv/bin/python
if [ ! -x "$python" ]; then
  echo "bench: the race against PyTorch needs the extras, so it was left out: run make extras first"
  exit 0
fi
exec "$python" bench/attention_cpu.py build/release/bench/libchorale_bench.so "$@"
