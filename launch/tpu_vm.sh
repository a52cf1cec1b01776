#!/usr/bin/env bash
# Pre-trains on every host of a TPU slice and starts again after a crash or preemption until the run is done.
#   ACCELERATOR=v5litepod-64 RUNTIME=v2-alpha-tpuv5-lite CXRJAX_DATA=/mnt/data \
#     launch/tpu_vm.sh NAME ZONE WORKDIR --config=configs/spcl.py:chestxray14 [--config.key=value …]
# With ACCELERATOR the slice is a queued resource NAME: it is asked for (Spot, unless SPOT is set and empty), waited for,
# and asked for again when it was taken away. Without, the slice NAME is there already.
# WORKDIR and $CXRJAX_DATA must be on a disk that all hosts see: a file store, or a bucket that is mounted, not gs://.
# Needs gcloud; to be called in this repository, which is copied to each host (~/cxrjax). RETRIES starts in a row that last
# less than ten minutes (default 10) end it; the pause between them doubles from PAUSE_S (default 30 s) to ten minutes.
set -euo pipefail
name=$1 zone=$2 workdir=$3
shift 3
tpus() { gcloud compute tpus "$@" --zone "$zone"; }
on_all() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

install() {
  git archive --prefix=cxrjax/ -o .cxrjax.tgz HEAD
  tpus tpu-vm scp .cxrjax.tgz "$name": --worker=all
  on_all "tar xzf .cxrjax.tgz && cd cxrjax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
}

state() { tpus queued-resources describe "$name" --format='value(state.state)' 2> /dev/null || true; }

# Returns when the slice is there; installed is empty if it is another one than before.
have_slice() {
  [ -n "${ACCELERATOR:-}" ] || return 0
  local now spot=()
  [ -z "${SPOT-1}" ] || spot=(--spot)
  while now=$(state) && [ "$now" != ACTIVE ]; do
    installed=''
    case $now in
      '')
        echo "asking for $ACCELERATOR" >&2
        tpus queued-resources create "$name" --node-id "$name" --accelerator-type "$ACCELERATOR" \
          --runtime-version "${RUNTIME:?}" "${spot[@]}"
        ;;
      SUSPENDED | FAILED)
        echo "the slice is $now: it is given back" >&2
        tpus queued-resources delete "$name" --force --quiet
        ;;
      *) sleep "${PAUSE_S:-30}" ;;
    esac
  done
}

# Quoted once more, for the shells of the hosts: a grid has blanks and semicolons.
run=$(printf '%q ' .venv/bin/python -m cxrjax.main --distributed --workdir="$workdir" "$@")
failures=0 pause=${PAUSE_S:-30} installed=''
while true; do
  have_slice
  began=$SECONDS code=0
  if [ -n "$installed" ] || install; then
    installed=1
    on_all "cd cxrjax && CXRJAX_DATA=$(printf %q "${CXRJAX_DATA:?}") $run" || code=$?
  else
    code=1
  fi
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
