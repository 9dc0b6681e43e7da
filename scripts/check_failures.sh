#!/usr/bin/env bash
# check_failures.sh: every test that docs/failures.md names is in the sources, and every class has a row.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0
while IFS=. read -r suite name; do
  grep -rqzE "TEST(_F|_P)?\(\s*$suite,\s*$name\s*\)" tests || {
    echo "docs/failures.md names $suite.$name: no such test" >&2
    failed=1
  }
done < <(grep '^| [0-9]' docs/failures.md | grep -oE '`[A-Za-z0-9]+\.[A-Za-z0-9_]+`' | tr -d '`')
for class in $(seq 25); do
  grep -q "^| $class | " docs/failures.md || {
    echo "docs/failures.md has no row for class $class" >&2
    failed=1
  }
done
exit $failed
