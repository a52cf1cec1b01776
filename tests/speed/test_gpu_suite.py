"""The suite for a GPU runs through at tiny sizes on the CPU, and its made-up batches are what the methods read."""

import json
import os
import subprocess
import sys

import jax
import pytest

from cxrjax import methods, optim, stand_ins
from cxrjax.speed import gpu_suite, torch_steps

ENTRIES = {entry.config: entry for entry in gpu_suite.ENTRIES.values()}


@pytest.mark.parametrize("name", ENTRIES)
def test_made_up_batches_have_the_shapes_of_the_methods_own(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path))
    config = gpu_suite.settings(ENTRIES[name], tiny=True)
    with stand_ins.of(config) as standing_in:
        expected = methods.blank_batch(methods.make(standing_in, 10))
    found = gpu_suite.made_up(config)
    described = {key: (value.shape[1:], value.dtype) for key, value in found.items()}
    assert described == {key: (value.shape[1:], value.dtype) for key, value in expected.items()}


@pytest.mark.parametrize("name", gpu_suite.ENTRIES)
def test_every_entry_is_a_config_at_real_size(name):
    entry = gpu_suite.ENTRIES[name]
    config = gpu_suite.settings(entry, tiny=False)
    assert config.batch_size == entry.batch_size and config.model.dtype == "bfloat16"
    assert config.model.variant in ("B", "L", "resnet50")
    assert optim.duration(config.optim, "warmup", config.batch_size, gpu_suite.EPOCH, default=0) < gpu_suite.STEPS


@pytest.mark.parametrize("name", ["spcl", "mae", "supervised"])
def test_pytorch_steps_lower_their_loss(name):
    torch = pytest.importorskip("torch")
    config = gpu_suite.settings(ENTRIES[name], tiny=True)
    model = torch_steps.models()[name](config)
    images = torch.rand(config.batch_size, config.model.image_px, config.model.image_px)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        torch.manual_seed(1)
        values.append(model(images))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0]
    torch_steps.step(name, config, compiled=False)()


def test_an_entry_is_timed_beside_pytorch(monkeypatch):
    if torch_steps.missing() is None:
        monkeypatch.setattr("torch.compile", lambda model: model)  # the whole suite compiles
    found = gpu_suite.measure(ENTRIES["mae"], tiny=True, steps=2)
    assert found["pictures_per_s"] == pytest.approx(8 / found["step_s"])
    assert 0 < found["share_of_peak"] < 1 and found["planned_bytes"] > 2**16
    assert found["device"] == jax.devices()[0].device_kind
    if torch_steps.missing() is None:
        assert found["torch_pictures_per_s"] > 0 and found["torch_compiled_pictures_per_s"] > 0
    assert gpu_suite._row("mae", found).count("|") == gpu_suite.HEADING.splitlines()[0].count("|")


def test_what_fails_or_finds_no_time_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "ENTRIES", {"S-PCL": ENTRIES["spcl"], "MAE": ENTRIES["mae"]})
    monkeypatch.setattr(gpu_suite, "_in_a_process", lambda name, *_: {"left_out": "no such device"})
    monkeypatch.setattr(gpu_suite.time, "monotonic", iter([0.0, 1.0, 9999.0, 9999.0]).__next__)
    found = gpu_suite.run(tmp_path, minutes=1, tiny=True)
    assert found["S-PCL"]["left_out"] == "no such device" and found["MAE"]["left_out"] == "the minutes were over"
    assert json.loads((tmp_path / "suite.json").read_text()) == found
    assert "| MAE | left out: the minutes were over |" in (tmp_path / "suite.md").read_text()


BARE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {readers}:
            raise ModuleNotFoundError(name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {readers} else found(name, *rest)
sys.path_hooks = [hook for hook in sys.path_hooks]
class Hidden(type(sys.meta_path[-1])): pass
original = sys.meta_path[-1].find_spec
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in {readers} else original(name, path, target)
sys.meta_path[-1] = Finder
from cxrjax.speed import gpu_suite
gpu_suite.main(["--suite=gpu", "--tiny", "--entry=supervised ViT-B"])
"""


def test_the_packages_that_read_pictures_are_not_needed():
    code = BARE.format(readers={*gpu_suite.READERS, "torch"})  # whose compiler would take most of the time
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["pictures_per_s"] > 0


@pytest.mark.slow
def test_the_whole_suite_at_tiny_sizes(tmp_path):
    command = [sys.executable, "-m", "cxrjax.benchmark", "--suite=gpu", "--tiny", f"--output={tmp_path}"]
    subprocess.run([*command, "--minutes=30"], check=True)
    found = json.loads((tmp_path / "suite.json").read_text())
    assert set(gpu_suite.ENTRIES) < set(found)
    assert not {name: each["left_out"] for name, each in found.items() if "left_out" in each}
