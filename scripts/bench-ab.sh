#!/usr/bin/env bash
# Measures multi-token prediction on and off (and grouped against per-token experts) in one run, interleaved. Exits 3 if any setting's token
# ids differ from the others'.
#   scripts/bench-ab.sh MODEL [flags of `foretoken bench`]
# The program is FORETOKEN_PROGRAM, else build/release/foretoken, which is built where it is missing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
  echo "usage: bench-ab.sh MODEL [flags of foretoken bench]" >&2
  exit 2
fi
model=$1
shift

program=${FORETOKEN_PROGRAM:-$root/build/release/foretoken}
if [ ! -x "$program" ]; then
  if [ -n "${FORETOKEN_PROGRAM:-}" ]; then
    echo "bench-ab.sh: FORETOKEN_PROGRAM=$program: no such program" >&2
    exit 2
  fi
  "$root/scripts/install-deps.sh" >&2
  "$root/scripts/build.sh" >&2
fi
exec "$program" bench -m "$model" "$@"
