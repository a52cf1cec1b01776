#!/usr/bin/env bash
# Pre-trains on every host of a TPU slice and starts again after a preemption until the run is done.
#   launch/tpu_vm.sh NAME ZONE WORKDIR --config=configs/spcl.py:chestxray14 [--config.key=value …]
# WORKDIR and $CXRJAX_DATA must be on a disk that all hosts see: a file store, or a bucket that is mounted, not gs://.
# Needs gcloud and this repository on each host (~/cxrjax). RETRIES starts in a row that last less than ten minutes
# (default 10) end it; the pause between them doubles from PAUSE_S (default 30 s) to ten minutes.
set -euo pipefail
name=$1 zone=$2 workdir=$3
shift 3
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command="$1"; }

on_all "cd cxrjax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
# Quoted once more, for the shells of the hosts: a grid has blanks and semicolons.
run=$(printf '%q ' .venv/bin/python -m cxrjax.main --distributed --workdir="$workdir" "$@")
failures=0 pause=${PAUSE_S:-30}
while true; do
  began=$SECONDS code=0
  on_all "cd cxrjax && CXRJAX_DATA=$(printf %q "${CXRJAX_DATA:?}") $run" || code=$?
  # 0: done. 2: a mistake in the settings, which another start would only repeat. 130: Ctrl-C.
  case $code in 0 | 2 | 130) exit "$code" ;; esac
  if [ $((SECONDS - began)) -ge 600 ]; then failures=0 pause=${PAUSE_S:-30}; fi
  failures=$((failures + 1))
  if [ "$failures" -ge "${RETRIES:-10}" ]; then
    echo "the run ended with $code for the ${failures}th time in a row: it is not started again" >&2
    exit "$code"
  fi
  sleep "$pause"
  pause=$((pause * 2 > 600 ? 600 : pause * 2))
done
