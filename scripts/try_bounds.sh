#!/usr/bin/env bash
# Tries the bounds of setup.py: on every supported Python that is installed here, the tests with the
# newest and with the lowest versions allowed. Minutes each; not part of CI.
#   scripts/try_bounds.sh [pytest arguments]
# PYTHONS chooses the interpreters.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# The lower bounds, as a constraints file.
sed -n "s/^ *'\([a-z-]*\)>=\([0-9.]*\),<.*',$/\1==\2/p" setup.py > "$work/lowest.txt"

for python in ${PYTHONS:-python3.11 python3.12 python3.13}; do
  if ! "$python" --version >/dev/null 2>&1; then
    echo "== $python: not installed, skipped"
    continue
  fi
  for bound in newest lowest; do
    venv="$work/$python-$bound"
    echo "== $python, $bound versions"
    "$python" -m venv "$venv"
    constraints=()
    [ "$bound" = lowest ] && constraints=(--constraint "$work/lowest.txt")
    if "$venv/bin/python" -m pip install --quiet ".[test]" "${constraints[@]}" \
        && "$venv/bin/python" -m pytest -q -x "$@"; then
      echo "== $python, $bound versions: passed"
    else
      echo "== $python, $bound versions: FAILED"
      failed=1
    fi
    rm -rf "$venv"
  done
done
exit $failed
