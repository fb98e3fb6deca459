#!/usr/bin/env bash
# Fuzzes the GGUF reader, the tokenizer, chat templates, grammars and the bodies of requests with libFuzzer under address and undefined-behaviour sanitizers.
#   scripts/fuzz.sh [seconds]     seconds in all, shared by all programs; 60 if not given
# Needs: clang, libclang-rt-14-dev (or another release's), and what the build needs. Finds are kept in build/fuzz/finds.
set -euo pipefail

usage() {
  echo "usage: scripts/fuzz.sh [seconds in all, at least 10; default 60]" >&2
  exit 2
}
[ $# -le 1 ] || usage
seconds=${1:-60}
[[ $seconds =~ ^[0-9]{1,7}$ ]] && ((10#$seconds >= 10)) || usage
seconds=$((10#$seconds))
parts=(gguf tokenizer template grammar request)

root=$(cd "$(dirname "$0")/.." && pwd)
build=${FORETOKEN_FUZZ_BUILD:-$root/build/fuzz}
for tool in clang++ cmake ninja; do
  if ! command -v "$tool" >/dev/null; then
    echo "scripts/fuzz.sh: $tool is missing; on Debian: apt-get install clang libclang-rt-14-dev cmake ninja-build" >&2
    exit 1
  fi
done

echo "== building the fuzzers in $build"
mkdir -p "$build/finds"
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFORETOKEN_FUZZ=ON >"$build/configure.log" 2>&1 || {
  cat "$build/configure.log" >&2
  exit 1
}
cmake --build "$build" --target "${parts[@]/#/fuzz_}"

for part in "${parts[@]}"; do
  # On a copy, which keeps what earlier runs found interesting; the seeds in the source tree stay as they are.
  corpus=$build/corpus/$part
  mkdir -p "$corpus"
  cp "$root/tests/fuzz/corpus/$part/"* "$corpus/"
  echo "== fuzz_$part for $((seconds / ${#parts[@]})) s from $(find "$corpus" -type f | wc -l) inputs"
  binary=$(find "$build" -type f -name "fuzz_$part" -perm -u+x | head -n 1)
  "$binary" -max_total_time=$((seconds / ${#parts[@]})) -max_len=16384 -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=512 -print_final_stats=1 \
    -artifact_prefix="$build/finds/$part-" "$corpus"
done
echo "== nothing found"
