#!/usr/bin/env bash
# Makes .venv312 for tests/e2e/test_python312.py, where there is a Python 3.12: the newest
# jax that pyproject.toml allows, and neither TensorFlow nor seqio. Needs .venv.
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
shopt -s nullglob

if ! python=$(find_python python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3.12); then
  echo "No Python 3.12 here: the smoke run with the newest jax is left out."
  exit
fi
wanted="$ROOT $(metadata_sum)"
stamp=$ROOT/.venv312/installed
[[ $(cat "$stamp" 2>/dev/null) != "$wanted" ]] || exit 0
echo "Installing fmjax without TensorFlow into $ROOT/.venv312."
[[ -e $ROOT/.venv312 ]] || make_venv "$python" "$ROOT/.venv312"
requirements=$("$VENV/bin/python" -c '
import importlib.metadata
for requirement in importlib.metadata.requires("fmjax"):
    if "extra ==" not in requirement and not requirement.startswith(("tensorflow", "seqio")):
        print(requirement)')
install=("$ROOT/.venv312/bin/python" -m pip install --quiet --disable-pip-version-check)
"${install[@]}" --requirement <(echo "$requirements")
"${install[@]}" --no-deps --editable "$ROOT"
echo "$wanted" >"$stamp"
