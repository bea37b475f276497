#!/usr/bin/env bash
# Runs benchmarks/gpu.py with the machine's own JAX for CUDA and PyTorch. Packages that
# the machine lacks are taken from wheels/ in this folder, if it is there:
#
#   bash benchmarks/gpu.sh --json gpu.json
#   bash benchmarks/gpu.sh --smoke            a rehearsal on a CPU
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
PYTHONPATH="$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
if [[ -d "$here/wheels" ]]; then
  site="$(mktemp -d)"
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" \
    "$here"/wheels/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
fi
exec "$python" "$here/gpu.py" "$@"
