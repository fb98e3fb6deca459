#!/usr/bin/env bash
# Installs what building Foretoken needs on Debian 12 (and its relatives): only packages that are missing, as root or through sudo.
#   scripts/install-deps.sh           what the program needs
#   scripts/install-deps.sh --tests   what the tests need too
#   scripts/install-deps.sh --fuzz    what fuzzing needs: clang with its runtime libraries
#   scripts/install-deps.sh --package what making a .deb needs
set -euo pipefail

packages=(g++ cmake ninja-build pkg-config git libboost-program-options-dev libfmt-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev
  libcpp-httplib-dev libedit-dev libopenmpi-dev openmpi-bin)
test_packages=(catch2 libsimde-dev libboost-context-dev clang-format-14)
fuzz_packages=(clang libclang-rt-14-dev)
package_packages=(dpkg-dev file gzip)

for argument in "$@"; do
  case "$argument" in
    --tests) packages+=("${test_packages[@]}") ;;
    --fuzz) packages+=("${fuzz_packages[@]}") ;;
    --package) packages+=("${package_packages[@]}") ;;
    *)
      echo "usage: install-deps.sh [--tests] [--fuzz] [--package]" >&2
      exit 2
      ;;
  esac
done

if ! command -v dpkg-query >/dev/null; then
  echo "install-deps.sh: no dpkg here, so nothing is installed; needed are: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "== packages: all ${#packages[@]} are installed"
  exit 0
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install-deps.sh: missing packages: ${missing[*]}; run this as root, or install sudo" >&2
    exit 1
  fi
  root=(sudo)
fi
echo "== packages: installing ${missing[*]}"
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
