#!/usr/bin/env bash
# Makes .venv with this checkout and the extras named in $1 (comma separated) installed, unless it
# is there already. PYTHON chooses the interpreter, VENV another folder.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=$1
venv=${VENV:-.venv}
stamp="$venv/installed-$(printf '%s' "$extras" | tr ',' '-')-$(cksum < setup.py | cut -d' ' -f1)"
[ -e "$stamp" ] && exit 0

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}
if [ ! -x "$venv/bin/python" ]; then
  for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    supported "$python" && found=$python && break
  done
  if [ -z "${found:-}" ]; then
    echo "No Python 3.11 to 3.13 found; set PYTHON to one." >&2
    exit 2
  fi
  echo "Creating $venv with $("$found" --version)"
  "$found" -m venv "$venv"
fi
echo "Installing prompt-tuning[$extras]"
"$venv/bin/python" -m pip install --quiet --editable ".[$extras]"
touch "$stamp"
