#!/usr/bin/env bash
# extras.sh: a Python environment in .extras/venv with the peers that optional tests and benchmarks compare with.
# Nothing of Chorale needs it; tests that find no .extras/venv say that they were skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.extras/venv
stamp=$venv/installed   # the requirements that were installed, so that a second run does nothing
if cmp --silent extras.txt "$stamp"; then
  echo "extras: $venv is up to date"
  exit 0
fi

python3 -c 'import ensurepip, venv' 2>/dev/null || scripts/setup.sh extras
rm -rf "$venv"
trap 'rm -rf "$venv"' ERR   # half of it would look like all of it to the tests
python3 -m venv "$venv"
# Python compiles what it imports: all of it would take longer than the rest of the installation.
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --requirement extras.txt
cp extras.txt "$stamp"
echo "extras: $("$venv/bin/pip" list --format freeze | grep -E '^(torch|transformers|numpy)==' | paste --serial --delimiters ' ')"
