"""What the command line says of a config: units that replace each other, None, a run's own config.json, help."""

import re
import subprocess
import sys

import pytest

from cxrjax import command, keys, ranges, saved_config
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


def test_settings_that_a_config_leaves_to_its_judges_can_be_given():
    argv = ["main", "--config=eval_probe", "--config.seed=3", "--config.evals.phantom_probe.bootstrap=100"]
    more = ["--config.evals.phantom_probe.strengths=100,20", "--config.evals.phantom_probe.set=mine"]
    assert "bootstrap" not in runs.config("eval_probe", "").evals.phantom_probe
    left, found = command.judges_settings(argv + more)
    assert left == [*argv[:3], more[1]]  # that one is the config's own
    assert found == {("phantom_probe", "bootstrap"): 100, ("phantom_probe", "strengths"): (100, 20)}
    assert command.judges_settings(argv[:3]) == (argv[:3], {})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("bootstrp=100", "evals.phantom_probe has no setting 'bootstrp'. Did you mean 'bootstrap'"),
        ("bootstrap=many", "bootstrap=many: this is no value like 1000"),
        ("folds=1.5", "folds=1.5: this is no value like 0"),
        ("pictures_gib=True", "pictures_gib=True: this is no value like 16.0"),
        ("neighbours=3", "evals.phantom_probe has no setting 'neighbours'"),
    ],
)
def test_settings_that_a_judge_does_not_know_are_refused(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        command.judges_settings(["main", "--config=eval_probe", f"--config.evals.phantom_probe.{given}"])


def test_keys_are_those_of_the_judges_too():
    config = runs.config("eval_zeroshot", "")
    listed = keys.listing(command.completed(config), runs.CONFIGS / "eval_zeroshot.py").splitlines()
    assert "evals.phantom_zeroshot.prompts = {}" in listed and "evals.phantom_zeroshot.bootstrap = 1000" in listed
    assert "bootstrap" not in config.evals.phantom_zeroshot


def test_help_lists_the_flags():
    done = subprocess.run([sys.executable, "-m", "cxrjax.plan", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Plan a pre-training run")
    assert "--on: target, such as h100:8" in done.stdout and "--config: NAME[:WORDS]" in done.stdout


@pytest.mark.parametrize("dtype", ["fp16", "float16", "bfloat"])
def test_dtypes_that_are_none_are_refused(dtype):
    with pytest.raises(ValueError, match="model.dtype = .*: it must be float32 or bfloat16"):
        ranges.check(runs.config(model__dtype=dtype))
