#!/usr/bin/env bash
# From a fresh Debian machine to decoded text: installs what is missing, builds, and decodes with the model in models/ and multi-token
# prediction on. The text goes to standard output, everything else to standard error.
#   scripts/run.sh [prompt]
# FORETOKEN_MODEL names another GGUF file, FORETOKEN_TOKENS the number of tokens (default 200).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

default_prompt='def read_lines(path):
    """Return the lines of a text file."""
'
prompt=${1:-$default_prompt}
model=${FORETOKEN_MODEL:-models/foretoken-demo.gguf}

scripts/install-deps.sh >&2
scripts/build.sh >&2
echo "== decoding with $model, --mtp 3" >&2
exec build/release/foretoken decode -m "$model" -p "$prompt" -n "${FORETOKEN_TOKENS:-200}" --mtp 3
