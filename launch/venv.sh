# shellcheck shell=bash
# Sourced by the scripts beside it. `install_fmjax EXTRAS [REQUIREMENT …]` makes .venv
# with a fitting Python and installs this checkout there, unless that is done already.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv

# On a CPU every step takes its memory from the kernel anew, and pages of 4 KiB made that
# a quarter of a small model's time; in large ones it is a twentieth.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

# Prints the first Python of its arguments that fmjax runs on. A name on PATH may be a
# shim without a Python behind it, so each is tried.
find_python() {
  local candidate
  for candidate in "$@"; do
    if "$candidate" -c '
import sys
sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# make_venv PYTHON FOLDER
make_venv() {
  # Debian's Python lacks ensurepip unless python3-venv is installed; its pip will do.
  "$1" -m venv "$2" >/dev/null 2>&1 || {
    "$1" -m venv --clear --without-pip "$2" &&
      "$1" -m pip --python "$2/bin/python" install --quiet pip
  } || {
    echo "$1 can make no virtual environment: install python3-venv, or a newer pip." >&2
    rm -rf "$2"
    return 1
  }
}

# What an installation depends on: a change to either file installs anew.
metadata_sum() {
  cat "$ROOT/setup.py" "$ROOT/pyproject.toml" | cksum
}

install_fmjax() {
  local extras=$1 python stamp wanted
  if [[ -e $VENV ]]; then
    if ! find_python "$VENV/bin/python" >/dev/null; then
      echo "$VENV holds no Python 3.11, 3.12 or 3.13: delete it and start again." >&2
      return 1
    fi
  else
    if ! python=$(find_python python3.11 python3.12 python3.13 python3); then
      echo "fmjax needs Python 3.11, 3.12 or 3.13; none is on the PATH." >&2
      return 1
    fi
    make_venv "$python" "$VENV"
  fi
  wanted="$ROOT $* $(metadata_sum)"
  stamp=$VENV/installed${extras:+-${extras//,/-}}
  if [[ $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
    echo "Installing fmjax${extras:+[$extras]} into $VENV; the first time takes minutes."
    (cd "$ROOT" && "$VENV/bin/python" -m pip install --quiet \
      --disable-pip-version-check "${@:2}" --editable ".${extras:+[$extras]}")
    echo "$wanted" >"$stamp"
  fi
}
