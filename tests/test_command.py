"""What the command line says of a config: units that replace each other, None, a run's own config.json, help."""

import subprocess
import sys

import pytest

from cxrjax import command, ranges, saved_config
from cxrjax import config as shared
from tests import runs


def test_one_unit_takes_the_place_of_the_others():
    config = runs.config("spcl", "chestxray14")
    argv = ["--config.duration.total_steps=5", "--config.optim.lr", "0.1", "--config.seed=3"]
    assert shared.other_units(command.changed(argv), config) == [
        "duration.total_epochs",
        "duration.total_examples",
        "optim.base_lr",
    ]
    both = ["--config.optim.lr=1", "--config.optim.base_lr=1"]
    assert shared.other_units(command.changed(both), config) == []  # refused by the optimizer, which names both
    assert shared.other_units(command.changed(argv), runs.config("eval_probe", "")) == []


def test_none_takes_back_what_may_be_left_open():
    argv = ["main", "--config=x.py", "--config.duration.total_epochs=None", "--config.data.sets=None_of_these"]
    assert command.taken_back(argv) == ([argv[0], argv[1], argv[3]], ["duration.total_epochs"])
    config = runs.config("spcl", "chestxray14")
    command.check_open(["duration.total_epochs"], config)
    with pytest.raises(ValueError, match="optim.wd cannot be None: it needs a value, such as 0.05"):
        command.check_open(["optim.wd"], config)
    with pytest.raises(ValueError, match="there is no setting optim.wdd.*wd"):
        command.check_open(["optim.wdd"], config)


def test_the_config_of_a_run_is_read_whole_and_can_be_changed(tmp_path):
    config = runs.config("spcl", "chestxray14")
    file = tmp_path / "config.json"
    file.write_text(shared.to_json(config))
    found = saved_config.get_config(str(file))
    assert shared.differences(found, config) == [] and shared.digest(found) == shared.digest(config)
    found.optim.lr = 0.5  # open in the recipe
    reader, _, path = command.as_flags([f"--config={file}"])[0].partition(":")
    assert reader.endswith("saved_config.py") and path == str(file)


def test_help_lists_the_flags():
    done = subprocess.run([sys.executable, "-m", "cxrjax.plan", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Plan a pre-training run")
    assert "--on: target, such as h100:8" in done.stdout and "--config: NAME[:WORDS]" in done.stdout


@pytest.mark.parametrize("dtype", ["fp16", "float16", "bfloat"])
def test_dtypes_that_are_none_are_refused(dtype):
    with pytest.raises(ValueError, match="model.dtype = .*: it must be float32 or bfloat16"):
        ranges.check(runs.config(model__dtype=dtype))
