#!/usr/bin/env bash
# Pre-trains on all GPUs of this machine and starts again after a crash or preemption until the run is done.
#   launch/gpu_vm.sh WORKDIR --config=configs/spcl.py:chestxray14 [--config.key=value …]
# RETRIES starts in a row that last less than ten minutes (default 10) end it; the pause between them doubles from PAUSE_S
# (default 10 s) to ten minutes. SIGTERM goes on to the run, which saves its state; then nothing is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=$1
shift
[ -d .venv ] || python3 -m venv .venv
.venv/bin/pip install -q -e '.[cuda]'

child='' stopped=''
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true
}
trap stop TERM INT

failures=0 pause=${PAUSE_S:-10}
while true; do
  began=$SECONDS code=0
  .venv/bin/python -m cxrjax.main --workdir="$workdir" "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2> /dev/null || true
  wait "$child" || code=$?
  while kill -0 "$child" 2> /dev/null; do # a signal ends the waiting, not the run
    code=0
    wait "$child" || code=$?
  done
  child=''
  # 0: done. 2: a mistake in the settings, which another start would only repeat. 130: Ctrl-C.
  case $code in 0 | 2 | 130) exit "$code" ;; esac
  [ -z "$stopped" ] || exit "$code"
  if [ $((SECONDS - began)) -ge 600 ]; then failures=0 pause=${PAUSE_S:-10}; fi
  failures=$((failures + 1))
  if [ "$failures" -ge "${RETRIES:-10}" ]; then
    echo "the run ended with $code for the ${failures}th time in a row: it is not started again" >&2
    exit "$code"
  fi
  echo "the run ended with $code: it is started again in $pause s" >&2
  sleep "$pause" &
  wait $! || true
  [ -z "$stopped" ] || exit "$code"
  pause=$((pause * 2 > 600 ? 600 : pause * 2))
done
