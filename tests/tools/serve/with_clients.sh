#!/usr/bin/env bash
# Installs the clients of requirements.txt into a folder of the build, once, and runs a test with them. Exit 77, skipped, where they cannot be had.
#   with_clients.sh VENV TEST PROGRAM MODEL
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$1
test=$2
shift 2
mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock"  # tests run side by side
flock 9
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
  if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check --timeout 15 --retries 1 -r "$here/requirements.txt"; }; then
    echo "skipped: the clients cannot be installed here (python3-venv and a network are needed)"
    exit 77
  fi
  cp "$here/requirements.txt" "$venv/installed.txt"
fi
exec 9>&-
exec "$venv/bin/python" "$here/$test" "$@"
