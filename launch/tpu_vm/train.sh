#!/usr/bin/env bash
# A Cloud TPU slice: the same command on every host. Not run here: there was no TPU.
#
#   bash launch/tpu_vm/train.sh TPU_NAME ZONE CONFIG.gin --run_dir DIR [NAME=VALUE …]
#
# Every host has this checkout in ~/fmjax, a .venv in it with `pip install -e .[tpu]`, and
# DIR and the data's cache on a file system that all of them share, such as a mounted
# bucket. Starts again for as long as the run says that it is unfinished.
set -euo pipefail

tpu=$1 zone=$2
shift 2
# `train` gets its words back on the other side, whatever is in them.
command="cd ~/fmjax && .venv/bin/python -m fmjax train $(printf '%q ' "$@") --cluster"
while true; do
  code=0
  gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all \
    --command="$command" || code=$?
  # ssh hands the exit code on; 75: unfinished, saved, start me again.
  [[ $code == 75 ]] || exit "$code"
done
