#!/usr/bin/env bash
# Makes .venv, installs fmjax there, and pretrains configs/quickstart.gin. Arguments go to
# `fmjax train`: bash launch/quickstart.sh train.steps=100
set -euo pipefail
# shellcheck source=launch/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

install_fmjax ''
exec "$VENV/bin/python" -m fmjax train quickstart.gin --run_dir "$ROOT/runs/quickstart" "$@"
