#!/usr/bin/env bash
# One process of {{ job.name }}, on each node: task.sh FOLDER_FOR_EXIT_CODES
set -u
trap : TERM # The signal is for the process below, for which bash waits.
code=0
{{ command | quoted }} || code=$?
echo "$code" >"$1/$SLURM_PROCID"
# {{ unfinished }}: saved, start me again. To srun it is no failure, as the others still save.
[[ $code == {{ unfinished }} ]] && code=0
exit "$code"
