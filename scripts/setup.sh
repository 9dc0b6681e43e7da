#!/usr/bin/env bash
# setup.sh GROUP...: makes sure that the Debian packages of these groups of packages.txt are installed. As root it
# installs what is missing; otherwise it prints the one command that would, and fails.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "setup: $*" >&2
  exit 1
}

# The packages of one group, one a line.
packages_of() {
  awk -v group="$1" '!/^#/ && $1 == group { print $2 }' packages.txt
}

installed() {
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

[ $# -gt 0 ] || fail "no group given: must be build, check, fuzz or extras"
command -v dpkg-query >/dev/null ||
  fail "dpkg-query not found: Chorale's set-up knows Debian 12 only; packages.txt lists what to install by other means"

missing=()
for group in "$@"; do
  packages=$(packages_of "$group")
  [ -n "$packages" ] || fail "group '$group': not in packages.txt"
  for package in $packages; do
    installed "$package" || missing+=("$package")
  done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${missing[*]}"
  fail "${#missing[@]} Debian packages are missing and only root may install them: run the command above, then try again"
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  fail "apt-get could not install ${missing[*]}: its last lines are above"
fi
