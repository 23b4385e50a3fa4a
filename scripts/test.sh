#!/usr/bin/env bash
# Sets everything up where it is absent and runs the tests. Arguments go to pytest. EXTRAS chooses
# what is installed: test,interop adds the comparisons with torch, transformers and peft.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup_venv.sh "${EXTRAS:-test}"
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
