#!/usr/bin/env bash
# Configures and builds one preset of CMakePresets.json into build/<preset>.
#   scripts/build.sh [preset] [target ...]   (default: release, the program alone)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=${1:-release}
[ $# -gt 0 ] && shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(foretoken)

configure=(cmake --preset "$preset")
if command -v ccache >/dev/null; then
  configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
# About 1.5 GB a compiler at the peak: fewer jobs than cores where memory is short.
jobs=$(nproc)
memory_gb=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null || echo 4)
by_memory=$((memory_gb * 2 / 3))
[ "$by_memory" -ge 1 ] || by_memory=1
[ "$jobs" -le "$by_memory" ] || jobs=$by_memory

echo "== configuring $preset"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"${configure[@]}" >"$log" 2>&1 || {
  cat "$log" >&2
  exit 1
}
echo "== building $preset with $jobs jobs"
cmake --build --preset "$preset" -j "$jobs" --target "${targets[@]}"
