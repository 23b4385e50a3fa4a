#!/usr/bin/env bash
# Tries the bounds of setup.py: on every supported Python that is installed here, the tests with the
# newest and with the lowest versions allowed. Minutes each; not part of CI.
#   scripts/try_bounds.sh [pytest arguments]
# VERSIONS chooses among "3.11 3.12 3.13".
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# The lower bounds, as a constraints file.
sed -n "s/^ *'\([a-z-]*\)>=\([0-9.]*\),<.*',$/\1==\2/p" setup.py > "$work/lowest.txt"

# A Python by its version: on the path, or kept by pyenv.
find_python() {
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    "$candidate" --version >/dev/null 2>&1 && echo "$candidate" && return
  done
}

for version in ${VERSIONS:-3.11 3.12 3.13}; do
  python=$(find_python "$version" || true)
  if [ -z "$python" ]; then
    echo "== Python $version: not installed, skipped"
    continue
  fi
  for bound in newest lowest; do
    venv="$work/$version-$bound"
    echo "== Python $version, $bound versions"
    "$python" -m venv "$venv"
    constraints=()
    [ "$bound" = lowest ] && constraints=(--constraint "$work/lowest.txt")
    if "$venv/bin/python" -m pip install --quiet ".[test]" "${constraints[@]}" \
        && "$venv/bin/python" -m pytest -q -x "$@"; then
      echo "== Python $version, $bound versions: passed"
    else
      echo "== Python $version, $bound versions: FAILED"
      failed=1
    fi
    rm -rf "$venv"
  done
done
exit $failed
