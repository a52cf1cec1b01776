"""The command `cxrjax`, configs by name from anywhere, and methods of one's own."""

import os
import re
import shlex
import subprocess
import sys

import pytest

import cxrjax
from cxrjax import __main__, keys, methods, named
from cxrjax import config as shared
from tests import runs

ROOT = runs.CONFIGS.parent


def cxrjax_says(*arguments, cwd=None, **environment):
    command = [sys.executable, "-m", "cxrjax", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_settings_become_flags():
    given = ["spcl:smoke", "optim.lr=1e-3", "--workdir", "runs/x", "init_from=runs/a=b"]
    assert __main__.as_python("train", given) == [
        "--config=spcl:smoke",
        "--config.optim.lr=1e-3",
        "--workdir",
        "runs/x",
        "--config.init_from=runs/a=b",
    ]
    assert __main__.as_python("report", ["runs=a,b"]) == ["--config=report", "--config.runs=a,b"]
    assert __main__.as_python("embed", ["a=b.png", "--output=x"]) == ["a=b.png", "--output=x"]


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_every_command_has_an_example_that_works(name):
    command = __main__.COMMANDS[name]
    assert command.example.startswith(f"{name} ")
    flags = __main__.as_python(name, shlex.split(command.example)[1:])
    if command.config:
        config = shared.load(flags[0].removeprefix("--config="))
        given = {match[1] for flag in flags if (match := re.match(r"--config\.([\w.]+)=", flag))}
        assert given <= shared.flat(config.to_dict()).keys()


def test_help_imports_nothing_heavy():
    code = "import sys; from cxrjax.__main__ import main; main(['--help']); print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    assert all(f"cxrjax {name} " in done.stdout for name in __main__.COMMANDS)


def test_help_of_a_command_speaks_of_cxrjax():
    said = cxrjax_says("prepare", "--help")
    assert said.returncode == 0 and "usage: cxrjax prepare" in said.stdout
    assert "cxrjax prepare chestxray14 --raw DIR" in said.stdout and "python -m" not in said.stdout
    text = "python -m cxrjax.main --config=configs/eval_probe.py:knn --config.checkpoint=runs/…"
    assert __main__.in_words_of_cxrjax(text) == "cxrjax eval probe:knn checkpoint=runs/…"


def test_errors_speak_of_cxrjax(capsys):
    stream = __main__.Errors(sys.stderr)
    print("error: give --config.checkpoint=runs/… to python -m cxrjax.embed", file=stream)
    assert capsys.readouterr().err == "error: give checkpoint=runs/… to cxrjax embed\n"
    assert stream.isatty() is sys.stderr.isatty()
    said = cxrjax_says("export")
    assert said.returncode == 2 and said.stderr.startswith("usage: cxrjax export") and "python -m" not in said.stderr


def test_an_unknown_command_is_named():
    said = cxrjax_says("trian")
    assert said.returncode == 1 and said.stderr.strip().endswith("Did you mean train?")


def test_a_dry_run_from_anywhere_makes_nothing(tmp_path):
    here, data = tmp_path / "here", tmp_path / "data"
    here.mkdir()
    said = cxrjax_says("train", "spcl:smoke", "batch_size=8", "--dry-run", cwd=here, CXRJAX_DATA=str(data))
    assert said.returncode == 0, said.stderr
    assert '"batch_size": 8' in said.stdout and "for        6 steps of 8" in said.stdout
    assert "on         phantom_smoke (would be simulated)" in said.stdout
    assert re.search(r"folder     runs/spcl-smoke-\w{6}: new", said.stdout)
    assert not list(here.iterdir()) and not data.exists()


def test_keys_are_listed_with_comments():
    listed = keys.listing(runs.config("spcl", ""), runs.CONFIGS / "spcl.py").splitlines()
    by_key = {line.partition(" = ")[0]: line for line in listed}
    assert by_key.keys() == shared.flat(runs.config("spcl", "").to_dict()).keys()
    assert by_key["loss.form"].endswith("'symmetric'                   # or nt_xent")  # of the config
    assert by_key["model.positions"].endswith("# or learned")  # of what it calls
    assert by_key["optim.grad_clip"].endswith("# of the norm of all gradients")  # of what all share
    assert "#" not in by_key["loss.kappa"]
    head = keys.listing(runs.config("finetune", ""), runs.CONFIGS / "finetune.py")
    assert "# or frozen: the head alone learns" in head and "of every fraction alike" not in head


def test_comments_are_found_behind_what_a_section_spreads_or_holds(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from cxrjax import recipes\n\n\ndef get_config(arg=''):\n"
        "    config.model = {**recipes.vit(), 'wide': 3}  # ours\n"
        "    config.both = {'left': recipes.vit()}\n"
    )
    said = keys.comments(file)
    assert said["model.positions"] == said["both.left.positions"] == "or learned"
    assert said["model.wide"] == "ours"


def test_completion_knows_commands_and_configs():
    script = __main__.completion("bash")
    words = 'COMP_WORDS=(cxrjax train fro); COMP_CWORD=2; _cxrjax; echo "${COMPREPLY[@]}"'
    assert (
        subprocess.run(["bash", "-c", f"{script}\n{words}"], capture_output=True, text=True).stdout
        == "frontal_lateral\n"
    )


def test_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named.available().keys() == {file.stem for file in runs.CONFIGS.glob("*.py")}
    assert cxrjax.config("spcl:smoke").to_dict() == runs.config().to_dict()
    assert named.find("probe:knn") == named.find("configs/eval_probe.py:knn")
    changed = cxrjax.config("spcl:chestxray14", {"duration.total_steps": 7, "optim.lr": 0.5})
    assert changed.duration.total_epochs is None and changed.optim.base_lr is None and changed.optim.lr == 0.5
    for wrong, said in {"spc1": "Did you mean spcl", "a/spcl.py": "no config 'a/spcl.py'", "x.json": "no file"}.items():
        with pytest.raises(ValueError, match=said):
            cxrjax.config(wrong)
    with pytest.raises(ValueError, match="no setting optim.lrr. Did you mean 'optim.lr'"):
        cxrjax.config("spcl", {"optim.lrr": 1})


OWN = """
import cxrjax
from cxrjax.methods import spcl

def make(config):
    return spcl.make(config)._replace(target="ours")

def get_config(words=""):
    config = cxrjax.config("spcl:smoke")
    config.method = {method}
    return config
"""


def test_a_method_and_its_config_can_be_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN.format(method="__file__"))
    config = cxrjax.config("mine.py")
    monkeypatch.chdir("/")
    assert methods.make(config).target == "ours"
    config.method = "gone.py"
    with pytest.raises(ValueError, match="config.method is 'gone.py', and there is no such file"):
        methods.make(config)


def test_an_installed_package_can_bring_a_method(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(OWN.format(method="'theirs'"))
    about = tmp_path / "their_package-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[cxrjax.methods]\ntheirs = their_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.make(cxrjax.config("theirs")).target == "ours"
    with pytest.raises(ValueError, match="Did you mean 'theirs'"):
        methods.make(shared.load("spcl:smoke", {"method": "their"}))
