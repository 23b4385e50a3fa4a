#!/usr/bin/env bash
# Sets everything up where it is absent and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup_venv.sh test
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
