"""The command line: what exists is listed, what is misspelt is named, nothing ends in a traceback."""

import subprocess
import sys

import jax
import pytest

from cxrjax import config as shared
from cxrjax import main
from tests import runs


def run(*arguments):
    process = subprocess.run(
        [sys.executable, "-m", "cxrjax.main", *arguments], capture_output=True, text=True, timeout=300
    )
    return process.returncode, process.stderr.strip().splitlines()[-1] if process.stderr.strip() else ""


def test_a_mistake_is_a_sentence_without_a_traceback():
    """Of a process; test_mistakes.py has the others, without one."""
    code, last = run("--config=configs/spcl.py", "--config.optim.wd=-1", "--workdir=/dev/null/run")
    assert code == 2 and last.startswith("error: optim.wd = -1.0: it must"), last


SAY_MUCH = """
import sys
from pathlib import Path
from cxrjax import command
def main(config, name, flags):
    for number in range(20000):
        print(number, flush=True)
    Path(sys.argv[2].partition("=")[2]).write_text("done")
    raise KeyboardInterrupt
command.run(main, "", lambda: command.flags.DEFINE_string("done", "", ""))
"""


def test_a_reader_that_goes_does_not_end_a_command(tmp_path):
    """`| head`. And Ctrl-C outside of training ends with the code that shells expect, without a traceback."""
    done = tmp_path / "done"
    arguments = ["--config=configs/eval_probe.py", f"--done={done}"]
    process = subprocess.Popen([sys.executable, "-c", SAY_MUCH, *arguments], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 130 and said.splitlines()[-1] == "Ctrl-C: stopped" and "Traceback" not in said
    assert done.read_text() == "done"


def test_a_workdir_belongs_to_one_setting(tmp_path):
    main.claim(tmp_path, runs.config(optim__lr=0.003))  # refused later, before its first step
    main.claim(tmp_path, runs.config())
    (tmp_path / "pictures.json").write_text("{}")  # training begins
    main.claim(tmp_path, runs.config(log_every_steps=1, mesh__data=4))  # changes no number
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.001 → 0\.002.*choose another --workdir"):
        main.claim(tmp_path, runs.config(optim__lr=0.002))


def test_checkpoints_without_their_config_are_not_resumed(tmp_path):
    runs.write(tmp_path, runs.config(), step=6)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints of the steps \[6\] and no config.json .*put it back"):
        main.claim(tmp_path, runs.config())


def test_the_precision_of_the_environment_is_a_setting(tmp_path):
    config = runs.config()
    main.claim(tmp_path, main._with_precision(config))
    (tmp_path / "pictures.json").write_text("{}")
    with jax.enable_x64(True):
        wide = main._with_precision(config)
    assert shared.digest(wide) != shared.digest(config) == shared.digest(main._with_precision(config))
    with pytest.raises(ValueError, match=r"jax.enable_x64: \(absent\) → True"):
        main.claim(tmp_path, wide)


def test_digest_follows_the_numbers_only(tmp_path):
    assert shared.digest(runs.config()) == shared.digest(runs.config(log_every_steps=1))
    assert shared.digest(runs.config()) != shared.digest(runs.config(seed=1))
    (tmp_path / "config.json").write_text(shared.to_json(runs.config()))
    assert shared.differences(runs.config(), shared.read(tmp_path / "config.json")) == []
    (tmp_path / "config.json").write_text('{"seed": 0,')
    with pytest.raises(ValueError, match="config.json is damaged .*copy it from"):
        shared.read(tmp_path / "config.json")


@pytest.mark.parametrize("words", ["", "chestxray14", "chestxray14,lowflop", "chestxray14,ocl_faithful", "five_sets"])
def test_every_word_makes_a_config_that_builds_a_method(words):
    from cxrjax import methods

    method = methods.make(runs.config(words=words))
    assert method.image_px in (64, 128, 224)
