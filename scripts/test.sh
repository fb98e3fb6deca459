#!/usr/bin/env bash
# Installs what is missing, builds, checks the formatting and runs all tests.
#   scripts/test.sh                also on a machine that has nothing but Debian
#   scripts/test.sh --sanitizers   then the quick tests again under AddressSanitizer + UBSan and under ThreadSanitizer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sanitizers=false
for argument in "$@"; do
  case "$argument" in
    --sanitizers) sanitizers=true ;;
    *)
      echo "usage: test.sh [--sanitizers]" >&2
      exit 2
      ;;
  esac
done

scripts/install-deps.sh --tests

echo "== formatting"
clang_format=$(command -v clang-format-14 || true)
if [ -z "$clang_format" ]; then
  echo "test.sh: clang-format-14 is missing; other versions format differently" >&2
  exit 1
fi
git ls-files -z --cached --others --exclude-standard -- '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0 "$clang_format" --dry-run -Werror

scripts/build.sh release all
echo "== tests"
ctest --preset release -j "$(nproc)"

if $sanitizers; then
  # Tests tagged [slow] would take hours here; their quick siblings run the same code.
  for preset in asan tsan; do
    scripts/build.sh "$preset" all
    for program in "build/$preset"/tests/test_*; do
      if [ ! -f "$program" ] || [ ! -x "$program" ]; then continue; fi
      echo "== $program"
      "$program" '~[slow]~[.]'
    done
  done
fi
echo "== all passed"
