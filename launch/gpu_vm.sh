#!/usr/bin/env bash
# Pre-trains on all GPUs of this machine and starts again after a crash or preemption until the run is done.
#   launch/gpu_vm.sh WORKDIR --config=configs/spcl.py:chestxray14 [--config.key=value …]
set -euo pipefail
cd "$(dirname "$0")/.."
workdir=$1
shift
[ -d .venv ] || python3 -m venv .venv
.venv/bin/pip install -q -e '.[cuda]'
while true; do
  code=0
  .venv/bin/python -m cxrjax.main --workdir="$workdir" "$@" || code=$?
  # 0: done. 2: a mistake in the settings, which another start would only repeat.
  [ "$code" -eq 0 ] || [ "$code" -eq 2 ] && exit "$code"
  sleep 10
done
