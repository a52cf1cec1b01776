import os
import subprocess
import sys
import time

from cxrjax.runtime import leftovers


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    features, steps = tmp_path / "evals" / "features", tmp_path / "checkpoints"
    gone = [
        features / f".abc.npz.{process.pid}",
        tmp_path / f".report.md.{process.pid}",
        steps / "2" / "a.json.partial",
    ]
    kept = [features / f".abc.npz.{os.getpid()}", features / "abc.npz", features / f".new.npz.{process.pid}"]
    kept += [steps / "2" / "_METADATA", steps / "run.json", tmp_path / "owner.json", tmp_path / ".vimrc"]
    for path in gone + kept + [steps / "3.incomplete" / "x"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        if "new" not in path.name:  # that one is being written, perhaps on another machine
            os.utime(path, (time.time() - 100,) * 2)
    assert set(leftovers.tidy(tmp_path)) == {*gone, steps / "3.incomplete"}
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
    assert not (steps / "3.incomplete").exists()
