#!/usr/bin/env bash
# {{ job.name }}: what every host does at each boot, as root. Written by `fmjax launch tpu-vm`.
set -uo pipefail

folder=${FMJAX_JOB_FOLDER:-/var/lib/fmjax}
mkdir -p "$folder"
if [[ -e $folder/ended ]]; then
  echo "fmjax ended with $(cat "$folder/ended")"
  exit 0
fi
cat >"$folder/{{ config_file }}" <<'END_OF_CONFIG'
{{ job.config }}END_OF_CONFIG
{% if registry %}
gcloud auth configure-docker {{ registry | quoted }} --quiet
{% endif %}
until docker pull {{ tpu_vm.image | quoted }}; do
  echo "the image cannot be pulled; trying again in 30 s"
  sleep 30
done

failures=0
while true; do
  docker rm --force fmjax >/dev/null 2>&1
  code=0
  docker run --name=fmjax --privileged --net=host --ulimit=memlock=-1 \
    --stop-timeout={{ tpu_vm.grace_seconds }} --volume="$folder:/job:ro" \
{% for each in environment %}
    --env={{ each | quoted }} \
{% endfor %}
    {{ tpu_vm.image | quoted }} \
    {{ command | quoted }} || code=$?
  case $code in
    0 | {{ final | replace("|", " | ") }}) break ;; # finished, or another start would end in the same way
    {{ unfinished }}) ;; # saved, start me again
    *)
      failures=$((failures + 1))
      ((failures <= {{ tpu_vm.restarts }})) || break
      echo "failed with exit code $code; restart $failures of {{ tpu_vm.restarts }}"
      ;;
  esac
  sleep "${FMJAX_PAUSE_SECONDS:-5}"
done
echo "$code" >"$folder/ended"
echo "fmjax ended with $code"
