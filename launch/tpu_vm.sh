#!/usr/bin/env bash
# Pre-trains on every host of a TPU slice and starts again after a preemption until the run is done.
#   launch/tpu_vm.sh NAME ZONE gs-or-shared-workdir --config=configs/spcl.py:chestxray14 [--config.key=value …]
# The workdir and $CXRJAX_DATA must be a disk that all hosts see. Needs gcloud and this repository on each host (~/cxrjax).
set -euo pipefail
name=$1 zone=$2 workdir=$3
shift 3
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command="$1"; }

on_all "cd cxrjax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
# Exit code 2 is a mistake in the settings, which another start would only repeat.
# Quoted once more, for the shells of the hosts: a grid has blanks and semicolons.
run=$(printf '%q ' .venv/bin/python -m cxrjax.main --distributed --workdir="$workdir" "$@")
until on_all "cd cxrjax && CXRJAX_DATA=$(printf %q "${CXRJAX_DATA:?}") $run"; do
  [ $? -eq 2 ] && exit 2
  sleep 30
done
