"""The launch scripts around a command that fails in every way; stubs stand for Python, Slurm, gcloud and git."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"

# Notes how it was called and ends with the next of the codes in `codes`, the last one again and again.
STUB = r"""#!/usr/bin/env bash
echo "$(basename "$0") $*" >> calls
case "$*" in
  *queued-resources\ describe*)
    sed -n 1p states
    sed -i 1d states
    exit
    ;;
  *queued-resources* | *scp*) exit ;;
esac
[ "$(wc -l < codes)" -gt 1 ] && next=$(sed -i -e '1{w next
d}' codes; cat next) || next=$(cat codes)
if [ "$next" = term ]; then
  trap 'echo saved >> calls; exit 143' TERM
  echo waiting >> calls
  while true; do sleep 0.05; done
fi
exit "$next"
"""


@pytest.fixture
def place(tmp_path):
    """A repository with stubs only; the codes to end with are set by the test."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    for name in (".venv/bin/python", "bin/srun", "bin/gcloud"):
        _program(tmp_path / name, STUB)
    for name in (".venv/bin/pip", "bin/scontrol", "bin/git"):
        _program(tmp_path / name, '#!/usr/bin/env bash\necho "$(basename "$0") $*" >> calls\n')
    return tmp_path


def _program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def start(place, codes, *command, **environment):
    (place / "codes").write_text("".join(f"{code}\n" for code in codes))
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PAUSE_S": "0",
        "CXRJAX_DATA": "/data",
        "SLURM_JOB_ID": "7",
        **environment,
    }
    return subprocess.Popen(["bash", *command], cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def calls(place, word):
    return [line for line in (place / "calls").read_text().splitlines() if line.startswith(word)]


@pytest.mark.parametrize(
    ("codes", "ended", "starts"), [((1, 137, 143, 0), 0, 4), ((2, 0), 2, 1), ((130, 0), 130, 1), ((1,), 1, 5)]
)
def test_a_machine_starts_again_with_a_limit(place, codes, ended, starts):
    process = start(place, codes, "launch/gpu_vm.sh", "runs/a b", "--config=x", RETRIES="5")
    said = process.communicate()[1]
    assert process.returncode == ended
    assert calls(place, "python") == ["python -m cxrjax.main --workdir=runs/a b --config=x"] * starts
    assert ("not started again" in said) is (codes == (1,))


def test_a_machine_passes_sigterm_on_and_ends(place):
    process = start(place, ("term", 0), "launch/gpu_vm.sh", "runs/a")
    while not (place / "calls").exists() or not calls(place, "waiting"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143 and calls(place, "saved") == ["saved"] and len(calls(place, "python")) == 1


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (1, 0, True), (143, 3, True), (137, 19, True), (1, 20, False)],
)
def test_slurm_requeues_after_crashes_too_with_a_limit(place, code, restarts, requeued):
    nodes = str(1 + restarts % 2)
    process = start(
        place, (code,), "launch/slurm.sbatch", "w", "--config=x", SLURM_RESTART_COUNT=str(restarts), SLURM_NNODES=nodes
    )
    process.communicate()
    assert process.returncode == code
    assert calls(place, "scontrol") == (["scontrol requeue 7"] if requeued else [])
    flag = "--distributed " if nodes == "2" else ""
    assert calls(place, "srun") == [f"srun .venv/bin/python -m cxrjax.main {flag}--workdir=w --config=x"]


@pytest.mark.parametrize(
    ("codes", "ended", "starts"),
    [((0, 1, 0), 0, 2), ((0, 2), 2, 1), ((0, 1), 1, 3), ((1, 0, 0), 0, 1)],
)
def test_a_slice_starts_again_with_a_limit(place, codes, ended, starts):
    """The first code is of the installation, and also the second one where that has failed."""
    process = start(place, codes, "launch/tpu_vm.sh", "name", "zone", "w", "--config=x", RETRIES="3")
    process.communicate()
    ran = [line for line in calls(place, "gcloud") if "cxrjax.main --distributed --workdir=w --config=x" in line]
    assert process.returncode == ended and len(ran) == starts
    assert not any("queued-resources" in line for line in calls(place, "gcloud"))


def test_a_slice_that_was_taken_away_is_asked_for_again(place):
    """It has to be installed again; one that is still there after a crash has not."""
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "", "PROVISIONING", "ACTIVE"]
    (place / "states").write_text("".join(f"{state}\n" for state in states))
    # Installed, a crash, a preemption, installed again, done.
    process = start(
        place, (0, 1, 255, 0, 0), "launch/tpu_vm.sh", "n", "z", "w", ACCELERATOR="v5litepod-64", RUNTIME="v2"
    )
    process.communicate(timeout=60)
    assert process.returncode == 0 and (place / "states").read_text() == ""
    words = {"create": "create", "delete": "delete", "scp": "install", "cxrjax.main": "run"}
    found = [word for line in calls(place, "gcloud") for key, word in words.items() if key in line]
    assert found == ["create", "install", "run", "run", "delete", "create", "install", "run"]
    create = next(line for line in calls(place, "gcloud") if "create" in line)
    assert "create n --node-id n --accelerator-type v5litepod-64 --runtime-version v2 --spot --zone z" in create


SKY = yaml.safe_load((LAUNCH / "sky.yaml").read_text())


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("code", [0, 2, 143])
def test_a_managed_job_runs_the_command_and_ends_with_its_code(place, nodes, code):
    """What is started again then is SkyPilot's to say: see job_recovery."""
    told = {"SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    told |= {"WORKDIR": "/runs/a b", "ARGS": "--config=x --config.seed=1"}
    assert subprocess.run(["bash", "-c", SKY["setup"]], cwd=place, env={**os.environ, **told}).returncode == 0
    process = start(place, (code,), "-c", SKY["run"], **told)
    process.communicate()
    join = "--coordinator=10.0.0.1:8476 --processes=2 --process=1 " if nodes == 2 else ""
    assert process.returncode == code
    assert calls(place, "python") == [f"python -m cxrjax.main {join}--workdir=/runs/a b --config=x --config.seed=1"]


def test_a_managed_job_says_what_it_needs():
    assert SKY["resources"]["use_spot"] and SKY["resources"]["job_recovery"]["max_restarts_on_errors"] > 0
    assert 143 in SKY["resources"]["job_recovery"]["recover_on_exit_codes"]
    commands = SKY["setup"] + SKY["run"]
    mounted = {mount["source"].strip("${}") for mount in SKY["file_mounts"].values()}
    used = set(re.findall(r"\$([A-Z]+)\b", commands)) | mounted
    assert used == set(SKY["envs"]), "each setting is used, and each that is used can be given"


def test_scripts_are_clean():
    check = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if check is None:
        pytest.skip("shellcheck is not installed; it is part of the extra 'test'")
    found = subprocess.run([check, *sorted(LAUNCH.glob("*.s*"))], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
