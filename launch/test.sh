#!/usr/bin/env bash
# Makes .venv with everything that the tests need, then runs lint, types and tests: those
# that guard every change, and with --slow those that take long as well. Other arguments
# go to pytest: bash launch/test.sh tests/e2e -x
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
cd "$ROOT"

# Where wheels of torch for the CPU alone are offered under this version, pip takes those.
install_fmjax test,parity torch==2.13.0
# What @mup() is compared with. It asks for torchvision, whose wheels are for CUDA, so that
# torch for the CPU and transformers would not load it; it needs none.
.venv/bin/python -c 'import mup' 2>/dev/null ||
  .venv/bin/python -m pip install --quiet --no-deps mup==1.0.0
if [[ " $* " == *" --slow "* ]]; then
  bash launch/python312.sh
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/ty check --python .venv
.venv/bin/shellcheck -x launch/*.sh .ci/run
# Files in the order that tests/conftest.py gives them.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
  --durations 25 --durations-min 5 "$@"
