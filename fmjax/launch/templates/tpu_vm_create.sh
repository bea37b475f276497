#!/usr/bin/env bash
# {{ job.name }}: asks Cloud TPU for {{ job.hardware }}. Written by `fmjax launch tpu-vm`.
# The machines run startup.sh at boot, and cost until they are deleted.
set -euo pipefail
{{ create | quoted }}
